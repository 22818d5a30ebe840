"""One completion as it is written, and a cache that lasts from one turn to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.generation import checks, decode, layout
from research.generation.samplers import Sampler, Seen
from research.models import Cache, Decoder

_FEWEST_SLOTS = 256


class Stream:
  """A model that writes token by token and remembers what it has read.

  A prompt that begins as the last prompt and its completion did, as the next turn of a chat
  does, is read from where it differs.

  Invariant: slot `i` of the cache holds `_tokens[i]` at position `i`.
  """

  def __init__(self, model: Decoder, variables: Any, *, unrolled: bool | None = None):
    checks.decoder(model, "a stream")
    self._model: Any
    self._model, self._variables = decode.prepare(model, variables, unrolled)
    self._lead, self._before = decode.ahead(variables)
    self._adapters = {"adapters": variables.get("adapters", {})}
    self._tokens: list[int] = []
    self._cache: Cache | None = None

  def __call__(
    self,
    prompt: Sequence[int],
    sampler: Sampler | None = None,
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    seed: int = 0,
  ) -> Iterator[int]:
    """The tokens of a completion, as they are drawn, up to and with the first EOS token.

    They are those of `generate` for this prompt alone. To stop early, close the iterator or
    leave it.

    Raises:
      ValueError: as `generate`.
    """
    checks.prompt(self._model, prompt, max_new_tokens, before=self._before)
    return self._write(
      [*self._lead, *prompt], sampler or Sampler(), max_new_tokens, set(eos_ids), seed
    )

  def use(self, slot: int) -> None:
    """From now on the adapter in a slot of the bank writes, -1 for none.

    What was read is forgotten: it was read by another.

    Raises:
      ValueError: the adapters are no bank, or it has no such slot.
    """
    chosen = decode.slots(self._adapters, [slot], 1)
    self._variables = decode.route(self._variables, chosen, np.zeros(1, np.int32))
    self._tokens, self._cache = [], None

  def _write(self, prompt, sampler, max_new_tokens, eos_ids, seed):
    zero = jnp.zeros((1,), jnp.int32)
    keys = decode.row_keys(seed, zero, zero)
    logits = self._read(prompt)
    seen = None
    if sampler.penalizes:
      tokens = jnp.asarray([prompt], jnp.int32)
      seen = Seen.of_prompt(tokens, jnp.zeros_like(tokens), logits.shape[-1])
    for step in range(max_new_tokens):
      drawn, seen = _draw(logits, keys, step, seen, sampler=sampler)
      token = int(drawn)
      yield token
      if token in eos_ids or step + 1 == max_new_tokens:
        return
      logits = self._read([*self._tokens, token])

  def _read(self, tokens: list[int]) -> jax.Array:
    """Brings the cache to hold `tokens`; logits `[1, V]` after the last of them."""
    same = next(
      (i for i, (a, b) in enumerate(zip(tokens, self._tokens, strict=False)) if a != b),
      min(len(tokens), len(self._tokens)),
    )
    same = min(same, len(tokens) - 1)  # the last one is read for its logits
    new = tokens[same:]
    size = 1 if len(new) == 1 else layout.bucket(len(new))
    padded = np.zeros((1, size), np.int32)
    positions = np.full((1, size), -1, np.int32)
    padded[0, : len(new)] = new
    positions[0, : len(new)] = np.arange(same, len(tokens))
    cache = self._with_room(same + size)
    # The old cache is given away below: a Ctrl-C from here on must find an empty stream.
    self._tokens, self._cache = [], None
    self._cache, logits = _advance(
      self._variables, cache, padded, positions, same, len(new), model=self._model
    )
    self._tokens = tokens
    return logits

  def _with_room(self, slots: int) -> Cache:
    wanted = layout.bucket(slots, _FEWEST_SLOTS)
    if self._cache is None:
      return self._model.init_cache(1, wanted)
    if self._cache.positions.shape[1] < slots:
      return self._cache.expand(1, wanted)
    return self._cache


@partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _advance(variables, cache, tokens, positions, start, count, *, model):
  """Writes `count` tokens from slot `start`, and forgets what lay from there on."""
  kept = jnp.arange(cache.positions.shape[1]) < start
  cache = cache.replace(positions=jnp.where(kept, cache.positions, -1), used=jnp.int32(start))
  hidden, cache = model.apply(variables, tokens, positions, cache=cache, method="hidden")
  last = jax.lax.dynamic_index_in_dim(hidden, count - 1, axis=1, keepdims=False)
  return cache, model.apply(variables, last, method="head")


@partial(jax.jit, static_argnames="sampler", donate_argnames="seen")
def _draw(logits, keys, step, seen, *, sampler):
  token, _, seen = decode.draw(sampler, logits, keys, step, seen)
  return token[0], seen
