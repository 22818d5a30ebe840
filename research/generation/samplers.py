"""How the next token is drawn from the model's logits.

Penalties and filters come in the order of transformers' logits processors: penalties,
temperature, top-k, top-p, min-p, typical. Nothing here sorts the vocabulary. A filter keeps the
entries from some value up, and where that value depends on what is kept, it is found by bisection,
a pass over the logits for each bit of it: a sort of 32 rows of 50,000 takes ten times as long on a
CPU as the model.

B rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

_BLOCK = 256


class Seen(NamedTuple):
  """The tokens that stand before the one to draw.

  prompted: bool `[B, V]`, those in the prompt. written: int32 `[B, V]`, how often each was drawn.
  """

  prompted: jax.Array
  written: jax.Array

  @classmethod
  def of_prompt(cls, tokens: jax.Array, positions: jax.Array, vocabulary: int) -> Seen:
    """Prompts `[B, P]`, padding at positions -1, of which nothing is written yet.

    Virtual tokens, whose ids are negative, are nothing that could be repeated.
    """
    empty = jnp.zeros((tokens.shape[0], vocabulary), jnp.int32)
    real = (positions >= 0) & (tokens >= 0)
    prompted = empty.at[jnp.arange(tokens.shape[0])[:, None], tokens].max(real)
    return cls(prompted > 0, empty)

  def add(self, tokens: jax.Array, count: jax.Array | int = 1) -> Seen:
    """With `tokens [B]` written, one a row, `count` times: a number, or one a row."""
    return self._replace(written=self.written.at[jnp.arange(tokens.shape[0]), tokens].add(count))


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Draws tokens; by default the most probable one.

  temperature: divides the logits; 0 takes the most probable token.
  top_k: keeps the k most probable tokens; 0 keeps all.
  top_p: keeps the fewest most probable tokens whose probabilities sum to `top_p` or more
    (Holtzman et al. 2020); 1 keeps all.
  min_p: keeps tokens at least `min_p` times as probable as the most probable one (Nguyen et al.
    2024); 0 keeps all.
  typical_p: keeps the fewest tokens of a surprise nearest to the entropy whose probabilities sum to
    `typical_p` or more (Meister et al. 2022); 1 keeps all.
  repetition_penalty: divides the logit of a token that prompt or completion hold where it is
    positive, multiplies it where it is negative (Keskar et al. 2019, CTRL); 1 does nothing.
  frequency_penalty: is subtracted from a token's logit as often as the completion holds it.
  presence_penalty: is subtracted once if the completion holds it. Both as in OpenAI's interface.

  Tokens that tie with the last one kept are kept.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  typical_p: float = 1.0
  repetition_penalty: float = 1.0
  frequency_penalty: float = 0.0
  presence_penalty: float = 0.0

  def __post_init__(self):
    if not 0 <= self.temperature < float("inf"):
      raise ValueError(f"temperature is {self.temperature}; it is 0 (most probable token) or more")
    if self.top_k < 0:
      raise ValueError(f"top_k is {self.top_k}; it is a number of tokens, or 0 for all")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p is {self.top_p}; it is above 0, and 1 for all tokens")
    if not 0 <= self.min_p <= 1:
      raise ValueError(f"min_p is {self.min_p}; it is at most 1, and 0 for all tokens")
    if not 0 < self.typical_p <= 1:
      raise ValueError(f"typical_p is {self.typical_p}; it is above 0, and 1 for all tokens")
    if not 0 < self.repetition_penalty < float("inf"):
      raise ValueError(
        f"repetition_penalty is {self.repetition_penalty}; it is above 0, and 1 for none"
      )
    for name in ("frequency_penalty", "presence_penalty"):
      if not math.isfinite(getattr(self, name)):
        raise ValueError(f"{name} is {getattr(self, name)}; it is a number, and 0 for none")

  @property
  def penalizes(self) -> bool:
    """Whether a draw depends on the tokens before it by more than their logits."""
    return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1, 0, 0)

  def __call__(self, logits: jax.Array, keys: jax.Array, seen: Seen | None = None) -> jax.Array:
    """A token a row, int32 `[B]`, of float32 logits `[B, V]` and a random key a row `[B]`.

    seen: needed by a sampler that `penalizes`.
    """
    logits = self.penalize(logits, seen)
    if self.temperature == 0:
      return most_probable(logits)
    return draw(self.weights(logits), jax.vmap(jax.random.uniform)(keys))

  def weights(self, logits: jax.Array) -> jax.Array:
    """What the tokens' probabilities of being drawn are proportional to, of penalized `[B, V]`."""
    logits = self.filter(logits)
    return jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))

  def penalize(self, logits: jax.Array, seen: Seen | None) -> jax.Array:
    """`logits [B, V]` after the three penalties."""
    if not self.penalizes:
      return logits
    assert seen is not None
    if self.repetition_penalty != 1:
      penalty = self.repetition_penalty
      less = jnp.where(logits < 0, logits * penalty, logits / penalty)
      logits = jnp.where(seen.prompted | (seen.written > 0), less, logits)
    if self.frequency_penalty:
      logits = logits - self.frequency_penalty * seen.written
    if self.presence_penalty:
      logits = logits - self.presence_penalty * (seen.written > 0)
    return logits

  def filter(self, logits: jax.Array) -> jax.Array:
    """`logits [B, V]` over the temperature, -inf where a token may not be drawn."""
    if self.temperature not in (0, 1):
      logits = logits / self.temperature
    if 0 < self.top_k < logits.shape[-1]:
      kept = _cut(logits, jnp.ones_like(logits), jnp.float32(self.top_k))
      logits = jnp.where(logits >= kept, logits, -jnp.inf)
    if self.top_p < 1:
      weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
      kept = _cut(logits, weights, self.top_p * jnp.sum(weights, axis=-1, keepdims=True))
      logits = jnp.where(logits >= kept, logits, -jnp.inf)
    if self.min_p > 0:
      weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
      logits = jnp.where(weights >= self.min_p, logits, -jnp.inf)
    if self.typical_p < 1:
      log_probs = jax.nn.log_softmax(logits)
      weights = jnp.exp(log_probs)
      entropy = -jnp.sum(jnp.where(weights > 0, weights * log_probs, 0), axis=-1, keepdims=True)
      nearness = -jnp.abs(log_probs + entropy)
      kept = _cut(nearness, weights, self.typical_p * jnp.sum(weights, axis=-1, keepdims=True))
      logits = jnp.where(nearness >= kept, logits, -jnp.inf)
    return logits


def greedy(
  repetition_penalty: float = 1.0, frequency_penalty: float = 0.0, presence_penalty: float = 0.0
) -> Sampler:
  """The sampler that takes the most probable token."""
  return Sampler(
    repetition_penalty=repetition_penalty,
    frequency_penalty=frequency_penalty,
    presence_penalty=presence_penalty,
  )


# `sample` draws from the distribution, by default as the model gives it.
SAMPLERS: dict[str, Callable[..., Sampler]] = {
  "greedy": greedy,
  "sample": partial(Sampler, temperature=1.0),
}


def most_probable(logits: jax.Array) -> jax.Array:
  """The first index of each row's maximum, int32 `[B]`; twice as fast on CPUs as one `argmax`."""
  blocks = _blocks(logits, -jnp.inf)
  block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
  inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  return (block * _BLOCK + jnp.argmax(inside, axis=-1)).astype(jnp.int32)


def _blocks(x: jax.Array, fill: float) -> jax.Array:
  """`[B, V]` -> `[B, V / _BLOCK, _BLOCK]`, with `fill` behind the last entry."""
  padding = ((0, 0), (0, -x.shape[-1] % _BLOCK))
  return jnp.pad(x, padding, constant_values=fill).reshape(x.shape[0], -1, _BLOCK)


def _cut(values: jax.Array, weights: jax.Array, target: jax.Array) -> jax.Array:
  """The largest value `[B, 1]` such that the weights of all from it up sum to `target` or more.

  Args:
    values, weights: `[B, V]`; weights are not negative.
    target: broadcasts to `[B, 1]`; at most the sum of weights.
  """

  def halve(_, bounds):
    low, high = bounds  # enough weight lies from `low` up, too little from `high` up
    middle = (low >> 1) + (high >> 1) + (low & high & 1)
    enough = jnp.sum(jnp.where(values >= _float(middle), weights, 0), -1, keepdims=True) >= target
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

  low = jnp.full((values.shape[0], 1), _order(jnp.float32(-jnp.inf)))
  high = jnp.full((values.shape[0], 1), _order(jnp.float32(jnp.inf)))
  return _float(jax.lax.fori_loop(0, 32, halve, (low, high))[0])


def _order(x: jax.Array) -> jax.Array:
  """float32 as the int32 that orders alike."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _float(order: jax.Array) -> jax.Array:
  """The inverse of `_order`."""
  bits = jnp.where(order < 0, order ^ 0x7FFFFFFF, order)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def draw(weights: jax.Array, uniform: jax.Array) -> jax.Array:
  """An index a row with probability proportional to `weights [B, V]`, by inversion.

  One number a row, `uniform [B]` in [0, 1), finds a block of the vocabulary and a token within
  it; Gumbel noise would take a random number for every token, four times the model's time.
  """
  blocks = _blocks(weights, 0.0)
  sums = jnp.sum(blocks, axis=-1)  # [B, blocks]
  block, rest = _invert(sums, uniform * jnp.sum(sums, axis=-1))
  inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]  # [B, _BLOCK]
  return block * _BLOCK + _invert(inside, rest)[0]


def _invert(weights: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Where the running sum of `weights [B, N]` passes `target [B]`, and how far into that entry.

  Rounding may leave the target beyond the sum; an entry without weight is never the answer.
  """
  index = jnp.arange(weights.shape[-1], dtype=jnp.int32)
  running = jnp.cumsum(weights, axis=-1)
  past = (weights > 0) & (running > target[:, None])
  first = jnp.min(jnp.where(past, index, weights.shape[-1]), axis=-1)
  last = jnp.max(jnp.where(weights > 0, index, 0), axis=-1)
  found = jnp.minimum(first, last)
  before = jnp.take_along_axis(running - weights, found[:, None], axis=-1)[:, 0]
  return found, target - before
