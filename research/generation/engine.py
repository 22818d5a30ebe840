"""Completions of many prompts: prefill and decoding with a cache in one compiled loop.

B rows (prompts times samples), P prompt slots, M new tokens at most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.core import sharding
from research.generation import checks, decode, layout
from research.generation.samplers import Sampler, Seen
from research.generation.stop import Reader, StopStrings, first_stops
from research.models import Cache
from research.quant.cache import CacheScheme

STRIDE = 16  # tokens written between two looks for stop strings


@dataclasses.dataclass(frozen=True)
class Completion:
  """What a model wrote after a prompt.

  prompt: the prompt's place in the list given. sample: its number among the prompt's samples.
  tokens: the new tokens, up to and with the first EOS token, or the one that completes a stop
    string; its text before that is `StopStrings.text`.
  log_probs: of each token, by the model's own distribution: at temperature 1 and unfiltered,
    whatever the sampler.
  finished: it ends with an EOS token or a stop string; otherwise it was cut off.
  """

  prompt: int
  sample: int
  tokens: list[int]
  log_probs: list[float]
  finished: bool


def generate(
  model: decode.Model,
  variables: Any,
  prompts: Sequence[Sequence[int]],
  sampler: Sampler | None = None,
  *,
  max_new_tokens: int,
  room: Sequence[int] | None = None,
  eos_ids: Sequence[int],
  stop: StopStrings | None = None,
  pad_id: int = 0,
  samples: int = 1,
  seed: int = 0,
  first_prompt: int = 0,
  numbers: Sequence[int] | None = None,
  batch_size: int = 32,
  unrolled: bool | None = None,
  which: Sequence[int] | None = None,
  cache: CacheScheme | None = None,
  progress: Callable[[int], object] | None = None,
) -> list[Completion]:
  """Completes every prompt `samples` times; in the order of `prompts`, then of samples.

  A sample depends on the model, its prompt, the sampler, the seed and its two numbers only: not
  on the batch, its place there or the padding (up to rounding, which the batch may change).

  Args:
    model: a decoder, or an encoder-decoder, to which a prompt is the source.
    variables: its `params`, and `adapters` if it has any; adapters merged beforehand
      (`research.peft.merge`) make it faster.
    prompts: token ids; of any number and lengths.
    sampler: by default takes the most probable token.
    max_new_tokens: tokens a completion may have, EOS included.
    room: as many of each prompt's, where that is fewer: a completion is cut off there, and others
      go on.
    eos_ids: any of them ends a completion.
    stop: strings that end a completion, too.
    pad_id: what stands at padding; no result depends on it.
    samples: completions of each prompt; they share one pass over it.
    seed: of the sampler's draws.
    first_prompt: the number by which the draws know the first of `prompts`: parts of a list,
      each given the number of its first, get what the whole list would.
    numbers: by which the draws know each of `prompts`, instead.
    batch_size: rows at a time at most.
    unrolled: an array a layer instead of stacks; by default on CPUs, where it is faster.
    which: where the adapters are a bank (`peft.bank`), the slot of each prompt's, -1 for none.
    cache: how keys and values of a decoder are held once the prompts are read; by default as they
      are.
    progress: called with the number of completions that a batch has added.

  Raises:
    ValueError: a prompt is empty, is longer than the model's positions allow, or holds a token
      that the model has not; or a number above is not positive, there are not as many of `room`
      or `numbers`, `which` is not of a bank, or an encoder-decoder's cache shall be in few bits.
  """
  checks.writes(model, "generation")
  checks.positive(max_new_tokens=max_new_tokens, samples=samples, batch_size=batch_size)
  most = [max_new_tokens] * len(prompts)
  if room is not None:
    if len(room) != len(prompts) or min(room, default=1) < 1:
      raise ValueError(f"room is of each of {len(prompts)} prompts, 1 or more, not {list(room)}")
    most = [min(max_new_tokens, each) for each in room]
  prompts = decode.led(model, variables, prompts, most)
  if cache is not None:
    checks.decoder(model, "a cache in few bits")
  if numbers is not None and len(numbers) != len(prompts):
    raise ValueError(f"there are {len(numbers)} numbers for {len(prompts)} prompts")
  chosen = decode.slots(variables, which, len(prompts))
  run_model, run_variables = decode.prepare(model, variables, unrolled)
  same = {"model": run_model, "sampler": sampler or Sampler(), "eos_ids": tuple(eos_ids)}

  def write(batch: layout.Batch) -> Written:
    first: Any = first_prompt
    if numbers is not None:  # how far each row's own is from its place
      first = np.asarray(numbers, np.int32)[batch.prompt] - batch.prompt
    own = decode.route(run_variables, chosen, batch.prompt)
    state, keys = start(
      own,
      batch.tokens,
      batch.positions,
      batch.prompt,
      batch.first_sample,
      seed,
      first,
      samples=batch.samples,
      max_new_tokens=max_new_tokens,
      room=None if room is None else np.asarray(most, np.int32)[batch.prompt],
      scheme=cache,
      **same,
    )
    readers = [stop.reader() for _ in range(len(keys))] if stop and stop.strings else []
    return _to_the_end(
      readers, state, max_new_tokens, lambda state, until: go_on(own, state, keys, until, **same)
    )

  shape = {"samples": samples, "batch_size": batch_size, "pad_id": pad_id}
  return in_batches(write, prompts, **shape, progress=progress)


def _to_the_end(
  readers: Sequence[Reader],
  state: _State,
  max_new_tokens: int,
  write_until: Callable[[_State, int], _State],
) -> Written:
  """What is written from the first token on: at once, or where there are readers, by strides.

  Args:
    readers: of each row, for its stop strings, or none.
    write_until: `go_on`.
  """
  step, state = 1, state._replace(written=stopped(state.written, readers))
  while step < max_new_tokens and not (readers and not np.any(state.written.going)):
    step = min(step + STRIDE, max_new_tokens) if readers else max_new_tokens
    state = write_until(state, step)
    state = state._replace(written=stopped(state.written, readers))
  return state.written


def in_batches(
  write: Callable[[layout.Batch], Written],
  prompts: Sequence[Sequence[int]],
  *,
  samples: int,
  batch_size: int,
  pad_id: int,
  progress: Callable[[int], object] | None,
) -> list[Completion]:
  """What `write` makes of each batch of prompts, in the order of `prompts`, then of samples."""
  found: dict[tuple[int, int], Completion] = {}
  for batch in layout.batches(prompts, samples=samples, batch_size=batch_size, pad_id=pad_id):
    before = len(found)
    found |= {
      (c.prompt, c.sample): c
      for c in _completions(batch, sharding.fetched(write(batch)))
      if c.sample < samples
    }
    if progress is not None:
      progress(len(found) - before)
  return [found[i, j] for i in range(len(prompts)) for j in range(samples)]


class Written(NamedTuple):
  """tokens, log_probs: `[B, M]`. length: int32 `[B]`, of what was written before the end.
  finished: bool `[B]`. room: int32 `[B]`, the most of each row, where rows differ."""

  tokens: jax.Array
  log_probs: jax.Array
  length: jax.Array
  finished: jax.Array
  room: jax.Array | None = None

  @property
  def going(self):
    """Rows that are to be gone on with, bool `[B]`."""
    return ~self.finished if self.room is None else ~self.finished & (self.length < self.room)

  def put(self, step, token, log_prob, eos_ids):
    """Writes the `step`-th token of each row that is going."""
    going = self.going
    eos = jnp.asarray(eos_ids, jnp.int32)[None]
    return Written(
      jax.lax.dynamic_update_slice_in_dim(self.tokens, token[:, None], step, axis=1),
      jax.lax.dynamic_update_slice_in_dim(self.log_probs, log_prob[:, None], step, axis=1),
      self.length + going,
      self.finished | (going & jnp.any(token[:, None] == eos, axis=-1)),
      self.room,
    )


class _State(NamedTuple):
  step: jax.Array  # tokens written
  token: jax.Array  # [B], the last one written, not yet in the cache
  position: jax.Array  # [B], its position
  cache: Cache
  seen: Seen | None  # for a sampler that penalizes
  written: Written


@partial(
  jax.jit, static_argnames=("model", "sampler", "samples", "max_new_tokens", "eos_ids", "scheme")
)
def start(
  variables,
  tokens,
  positions,
  prompt,
  first_sample,
  seed,
  first_prompt,
  *,
  model,
  sampler,
  samples,
  max_new_tokens,
  eos_ids,
  room=None,
  scheme=None,
) -> tuple[_State, jax.Array]:
  """After the prompts and the first new token, their cache by `scheme`; and the rows' keys.

  room: int32 `[R]`, new tokens of each prompt's rows at most, where they are not all alike.
  """
  rows = tokens.shape[0]
  keys = decode.sample_keys(seed, prompt + first_prompt, first_sample, samples)

  cache, logits, start = decode.begin(model, variables, tokens, positions)
  # The last token drawn never goes into the cache.
  slots = layout.slots(cache.positions.shape[1] + max_new_tokens - 1)
  cache = cache.compress(scheme, samples, slots) if scheme else cache.expand(samples, slots)
  logits = jnp.repeat(logits, samples, axis=0)
  seen = None
  if sampler.penalizes:
    own = decode.own_prompt(model, tokens, positions)
    seen = Seen.of_prompt(*own, model.config.vocab_size)
    seen = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), seen)

  batch = rows * samples
  written = Written(
    jnp.zeros((batch, max_new_tokens), jnp.int32),
    jnp.zeros((batch, max_new_tokens), jnp.float32),
    jnp.zeros((batch,), jnp.int32),
    jnp.repeat(prompt < 0, samples),
    None if room is None else jnp.repeat(room, samples),
  )
  token, log_prob, seen = decode.draw(sampler, logits, keys, 0, seen)
  written = written.put(0, token, log_prob, eos_ids)
  return _State(jnp.int32(1), token, jnp.repeat(start, samples), cache, seen, written), keys


@partial(jax.jit, static_argnames=("model", "sampler", "eos_ids"), donate_argnames="state")
def go_on(variables, state, keys, until, *, model, sampler, eos_ids) -> _State:
  """Writes tokens up to the number `until`, or until no row is going."""

  def going(state):
    return (state.step < until) & jnp.any(state.written.going)

  def step(state):
    cache, logits = decode.advance(
      model, variables, state.cache, state.token[:, None], state.position[:, None]
    )
    token, log_prob, seen = decode.draw(sampler, logits, keys, state.step, state.seen)
    written = state.written.put(state.step, token, log_prob, eos_ids)
    return _State(state.step + 1, token, state.position + 1, cache, seen, written)

  return jax.lax.while_loop(going, step, state)


def stopped(written: Written, readers: Sequence[Reader]) -> Written:
  """`written` with the rows finished in whose new tokens a stop string was completed."""
  if not readers:
    return written
  tokens, length, finished = map(
    np.array, sharding.fetched((written.tokens, written.length, written.finished))
  )
  for row, end in first_stops(readers, tokens, length).items():
    length[row], finished[row] = end, True
  # Not jnp's, which of several processes would be on a device of this one alone.
  changed: Any = {"length": length, "finished": finished}
  return written._replace(**changed)


def _completions(batch: layout.Batch, written: Written) -> list[Completion]:
  """The rows of `written`, as NumPy arrays, that are not padding."""
  found = []
  for row, (prompt, first) in enumerate(zip(batch.prompt, batch.first_sample, strict=True)):
    for j in range(batch.samples if prompt >= 0 else 0):
      at = row * batch.samples + j
      length = int(written.length[at])
      found.append(
        Completion(
          int(prompt),
          int(first) + j,
          np.asarray(written.tokens[at, :length]).tolist(),
          np.asarray(written.log_probs[at, :length]).tolist(),
          bool(written.finished[at]),
        )
      )
  return found
