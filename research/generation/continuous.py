"""Completions of a queue of requests: a row that has finished takes the next one at once.

The cache is a ring: all rows write one slot at a time, as they do in a batch that starts together,
and go round. A newcomer's prompt is read on its own and put behind the slot that comes next. A row
needs no more slots than its prompt and completion, so what the ring writes over is past.

B rows, n newcomers, P prompt slots, T slots of the ring.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.core import sharding
from research.generation import checks, decode, layout
from research.generation.engine import STRIDE, Completion
from research.generation.samplers import Sampler, Seen
from research.generation.stop import Reader, StopStrings, first_stops
from research.models.cache import Cache
from research.models.decoder import Decoder

_UNTIL_ONE_ENDS = np.iinfo(np.int32).max  # steps


@dataclasses.dataclass(frozen=True)
class Request:
  """prompt: token ids. max_new_tokens: tokens its completion may have, EOS included."""

  prompt: Sequence[int]
  max_new_tokens: int


def serve(
  model: Decoder,
  variables: Any,
  requests: Iterable[Request],
  sampler: Sampler | None = None,
  *,
  eos_ids: Sequence[int],
  stop: StopStrings | None = None,
  slots: int | None = None,
  pad_id: int = 0,
  seed: int = 0,
  first_prompt: int = 0,
  batch_size: int = 32,
  unrolled: bool | None = None,
) -> Iterator[Completion]:
  """The completions of `requests`, each as soon as it is finished.

  A completion is what `generate` writes for its prompt, seed and prompt number (up to rounding).

  Args:
    requests: a request's place among them is its completion's `prompt`.
    slots: tokens that a row can hold, prompt and completion; requests are then taken one by one as
      rows become free, of which there may be any number. By default what the longest needs, for
      which all are read first.
    batch_size: rows. Memory is that of so many rows of `slots`.
    The others: see `research.generation.generate`.

  Raises:
    ValueError: as `generate`, for a request when it is taken; it needs more than `slots`.
  """
  checks.decoder(model, "serving a queue")
  checks.positive(batch_size=batch_size)
  decode.slots(variables, None, 0)
  lead, before = decode.ahead(variables)
  if slots is None:
    requests = list(requests)
    slots = max((len(r.prompt) + r.max_new_tokens for r in requests), default=1)
  checks.positive(slots=slots)
  queue = _Queue(model, requests, slots, lead, before)
  rows = Rows(
    *decode.prepare(model, variables, unrolled),
    sampler or Sampler(),
    tuple(eos_ids),
    shape=(batch_size, len(lead) + slots),
    numbers=(seed, first_prompt, pad_id),
    stop=stop,
  )
  return _serve(queue, rows)


def _serve(queue: _Queue, rows: Rows) -> Iterator[Completion]:
  while True:
    rows.admit(queue.take(rows.free))
    if not rows.occupied:
      return
    yield from rows.advance()


class _Queue:
  """The requests that wait, each checked when it is taken.

  lead, before: as of `decode.ahead`.
  """

  def __init__(
    self, model: Decoder, requests: Iterable[Request], slots: int, lead: list[int], before: int
  ):
    self._model, self._slots = model, slots
    self._lead, self._before = lead, before
    self._waiting = enumerate(requests)

  def take(self, count: int) -> list[tuple[int, Request]]:
    """The next ones, `count` at most, each with its place."""
    taken = list(itertools.islice(self._waiting, count))
    for i, request in taken:
      checks.positive(max_new_tokens=request.max_new_tokens)
      checks.prompt(
        self._model, request.prompt, request.max_new_tokens, f"prompt {i}", before=self._before
      )
      if len(request.prompt) + request.max_new_tokens > self._slots:
        raise ValueError(
          f"prompt {i} has {len(request.prompt)} tokens, which with max_new_tokens "
          f"{request.max_new_tokens} exceeds the {self._slots} slots of a row"
        )
    return [
      (i, dataclasses.replace(request, prompt=[*self._lead, *request.prompt]))
      for i, request in taken
    ]


class Rows:
  """The rows of a running batch: which requests they hold, and their state on the device.

  lengths: tokens written of each request that was running at the last `advance`.

  Args:
    model, variables: as `decode.prepare` gives them.
    shape: rows, and tokens that each can hold. numbers: the seed, the number by which draws know
      the first request, and the token at padding.
  """

  def __init__(
    self,
    model: Decoder,
    variables: Any,
    sampler: Sampler,
    eos_ids: tuple[int, ...],
    *,
    shape: tuple[int, int],
    numbers: tuple[int, int, int],
    stop: StopStrings | None = None,
  ):
    self.lengths: dict[int, int] = {}
    self._variables = variables
    self._stop = stop if stop and stop.strings else None
    self._seed, self._first, self._pad_id = numbers
    self._same = {"model": model, "sampler": sampler, "eos_ids": eos_ids}
    self._state = _empty(*shape, model=model, penalizes=sampler.penalizes)
    self._requests: list[int | None] = [None] * shape[0]
    self._readers: list[Reader | None] = [None] * shape[0]

  @property
  def free(self) -> int:
    """How many hold no request."""
    return self._requests.count(None)

  @property
  def occupied(self) -> bool:
    """Whether one holds a request."""
    return self.free < len(self._requests)

  def admit(self, newcomers: Sequence[tuple[int, Request]]) -> None:
    """Reads their prompts into free rows and draws their first tokens."""
    # Programs for one newcomer and for all rows: more would take longer to compile than they save.
    size = len(self._requests) if 2 * len(newcomers) > len(self._requests) else 1
    rows = iter([row for row, request in enumerate(self._requests) if request is None])
    for start in range(0, len(newcomers), size):
      some = newcomers[start : start + size]
      prompts = [request.prompt for _, request in some]
      tokens, positions = layout.padded(prompts, size, self._pad_id)
      # A row that does not exist is where nothing is put.
      place = np.full((size,), len(self._requests), np.int32)
      number, limit = np.zeros((size,), np.int32), np.zeros((size,), np.int32)
      for j, (i, request) in enumerate(some):
        place[j], number[j], limit[j] = next(rows), i + self._first, request.max_new_tokens
        self._requests[place[j]] = i
        self._readers[place[j]] = self._stop.reader() if self._stop else None
      self._state = _admit(
        self._variables,
        self._state,
        tokens,
        positions,
        place,
        number,
        limit,
        self._seed,
        **self._same,
      )

  def advance(self, steps: int = _UNTIL_ONE_ENDS) -> list[Completion]:
    """Writes `steps` tokens a row at most, until a row has finished; returns what has finished.

    With stop strings, a stride of tokens at most.
    """
    occupied = np.array([request is not None for request in self._requests])
    steps = min(steps, STRIDE) if self._stop else steps
    self._state = _advance(self._variables, self._state, occupied, np.int32(steps), **self._same)
    # Copies: the state is given away at the next step.
    left, length, finished = (
      np.array(x)
      for x in sharding.fetched((self._state.left, self._state.length, self._state.finished))
    )
    if self._stop:
      self._look_for_stops(left, length, finished)
    self.lengths = {
      request: int(length[row]) for row, request in enumerate(self._requests) if request is not None
    }
    ended = np.flatnonzero(occupied & (left == 0))
    if not len(ended):
      return []
    tokens, log_probs = sharding.fetched((self._state.tokens, self._state.log_probs))
    found = []
    for row in map(int, ended):
      request, self._requests[row] = self._requests[row], None
      assert request is not None
      own = tokens[row, : length[row]].tolist(), log_probs[row, : length[row]].tolist()
      found.append(Completion(request, 0, *own, bool(finished[row])))
    return found

  def _look_for_stops(self, left, length, finished):
    """Ends the rows in whose new tokens a stop string was completed."""
    readers = [
      None if request is None else reader
      for request, reader in zip(self._requests, self._readers, strict=True)
    ]
    ends = first_stops(readers, sharding.fetched(self._state.tokens), length)
    for row, end in ends.items():
      length[row], left[row], finished[row] = end, 0, True
    if ends:
      self._state = self._state._replace(left=left)


class _State(NamedTuple):
  """tokens, log_probs: `[B, T]`, written. length: int32 `[B]`, of them. left: int32 `[B]`, tokens
  that a row may still write; 0 in one that has finished or is free. finished: bool `[B]`."""

  cache: Cache  # the ring; `used` is the slot that comes next
  token: jax.Array  # [B], the last one written, not yet in the cache
  position: jax.Array  # [B], its position
  keys: jax.Array  # [B], of the draws
  tokens: jax.Array
  log_probs: jax.Array
  length: jax.Array
  left: jax.Array
  finished: jax.Array
  seen: Seen | None  # for a sampler that penalizes


@partial(jax.jit, static_argnums=(0, 1), static_argnames=("model", "penalizes"))
def _empty(batch, slots, *, model, penalizes) -> _State:
  cache = model.init_cache(batch, layout.slots(slots))
  zeros = jnp.zeros((batch,), jnp.int32)
  seen = None
  if penalizes:
    shape = (batch, model.config.vocab_size)
    seen = Seen(jnp.zeros(shape, bool), jnp.zeros(shape, jnp.int32))
  return _State(
    cache=cache,
    token=zeros,
    position=zeros,
    keys=decode.row_keys(0, zeros, zeros),
    tokens=jnp.zeros((batch, slots), jnp.int32),
    log_probs=jnp.zeros((batch, slots), jnp.float32),
    length=zeros,
    left=zeros,
    finished=jnp.zeros((batch,), bool),
    seen=seen,
  )


@partial(jax.jit, static_argnames=("model", "sampler", "eos_ids"), donate_argnames="state")
def _admit(
  variables, state, tokens, positions, rows, number, limit, seed, *, model, sampler, eos_ids
) -> _State:
  """Prompts `[n, P]` into `rows [n]`; those of rows that do not exist are left out."""
  keys = decode.row_keys(seed, number, jnp.zeros_like(number))
  cache = model.init_cache(*tokens.shape)
  cache, logits = decode.advance(model, variables, cache, tokens, positions)
  seen = Seen.of_prompt(tokens, positions, logits.shape[-1]) if sampler.penalizes else None
  token, log_prob, seen = decode.draw(sampler, logits, keys, 0, seen)
  ends = decode.is_any(token, eos_ids)

  def put(kept, new):
    return kept.at[rows].set(new, mode="drop")

  return _State(
    state.cache.insert(cache, rows),
    put(state.token, token),
    put(state.position, positions[:, -1] + 1),
    put(state.keys, keys),
    state.tokens.at[rows, 0].set(token, mode="drop"),
    state.log_probs.at[rows, 0].set(log_prob, mode="drop"),
    put(state.length, 1),
    put(state.left, jnp.where(ends, 0, limit - 1)),
    put(state.finished, ends),
    jax.tree.map(put, state.seen, seen),
  )


@partial(jax.jit, static_argnames=("model", "sampler", "eos_ids"), donate_argnames="state")
def _advance(variables, state, occupied, steps, *, model, sampler, eos_ids) -> _State:
  """Writes a token a row, `steps` times at most, until one of the `occupied [B]` has finished."""
  batch, slots = state.cache.positions.shape

  def going(carry):
    step, state = carry
    return (step < steps) & ~jnp.any(occupied & (state.left == 0))

  def write(carry):
    step, state = carry
    active = state.left > 0
    positions = jnp.where(active, state.position, -1)[:, None]
    cache, logits = decode.advance(model, variables, state.cache, state.token[:, None], positions)
    token, log_prob, seen = decode.draw(sampler, logits, state.keys, state.length, state.seen)
    ends = active & decode.is_any(token, eos_ids)
    at = (jnp.arange(batch), state.length)
    return step + 1, _State(
      cache.replace(used=cache.used % slots),
      token,
      state.position + 1,
      state.keys,
      state.tokens.at[at].set(token, mode="drop"),
      state.log_probs.at[at].set(log_prob, mode="drop"),
      state.length + active,
      jnp.where(ends, 0, state.left - active),
      state.finished | ends,
      seen,
    )

  return jax.lax.while_loop(going, write, (jnp.int32(0), state))[1]
