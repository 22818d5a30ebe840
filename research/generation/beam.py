"""Beam search: the most probable completions that a breadth of several finds.

The rules, ties and stopping conditions are those of transformers, so that the tokens are.

R prompts, K beams, C candidates of a step, P prompt slots, M new tokens at most, V vocabulary.
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
from research.generation.engine import Completion
from research.models import Cache

_NEVER = -1e9  # the score of what is not to be taken


def beam_search(
  model: decode.Model,
  variables: Any,
  prompts: Sequence[Sequence[int]],
  *,
  num_beams: int,
  max_new_tokens: int,
  eos_ids: Sequence[int],
  length_penalty: float = 1.0,
  early_stopping: bool | str = False,
  pad_id: int = 0,
  samples: int = 1,
  batch_size: int = 32,
  unrolled: bool | None = None,
  which: Sequence[int] | None = None,
  progress: Callable[[int], object] | None = None,
) -> list[Completion]:
  """The `samples` best completions of every prompt, best first.

  A completion's score is the sum of its log-probabilities over its tokens' number to the power of
  `length_penalty`.

  Args:
    num_beams: completions that are followed at a time.
    length_penalty: above 0 it favours long completions, below 0 short ones.
    early_stopping: True ends a prompt's search when it has `num_beams` ended completions; False
      when its best beam, were it to end now, would be no better than the worst of them; "never"
      when it could not become better at any length.
    batch_size: beams at a time; at least those of one prompt.
    The others: see `research.generation.generate`.

  Raises:
    ValueError: as `generate`; `samples` is more than `num_beams`, or a value means nothing.
  """
  checks.writes(model, "beam search")
  checks.positive(
    num_beams=num_beams, max_new_tokens=max_new_tokens, samples=samples, batch_size=batch_size
  )
  if samples > num_beams:
    raise ValueError(f"samples is {samples}, more than the {num_beams} of num_beams")
  if not isinstance(early_stopping, bool) and early_stopping != "never":
    raise ValueError(f"early_stopping is {early_stopping!r}; it is True, False or 'never'")
  if not abs(length_penalty) < float("inf"):
    raise ValueError(f"length_penalty is {length_penalty}; it is a number, and 0 for none")
  prompts = decode.led(model, variables, prompts, max_new_tokens)
  chosen = decode.slots(variables, which, len(prompts))
  run_model, run_variables = decode.prepare(model, variables, unrolled)
  rules = _Rules(num_beams, max_new_tokens, tuple(eos_ids), float(length_penalty), early_stopping)
  found: dict[tuple[int, int], Completion] = {}
  for batch in layout.batches(
    prompts, samples=num_beams, batch_size=max(batch_size, num_beams), pad_id=pad_id
  ):
    ended = sharding.fetched(
      _search(
        decode.route(run_variables, chosen, batch.prompt),
        batch.tokens,
        batch.positions,
        batch.prompt,
        model=run_model,
        rules=rules,
      )
    )
    before = len(found)
    for row, i in enumerate(batch.prompt):
      for j in range(samples if i >= 0 else 0):
        length = int(ended.length[row, j])
        tokens = np.asarray(ended.tokens[row, j, :length]).tolist()
        log_probs = np.asarray(ended.log_probs[row, j, :length]).tolist()
        found[i, j] = Completion(int(i), j, tokens, log_probs, tokens[-1] in eos_ids)
    if progress is not None:
      progress(len(found) - before)
  return [found[i, j] for i in range(len(prompts)) for j in range(samples)]


class _Beams(NamedTuple):
  """tokens, log_probs: `[R, K, M]`. length: int32 `[R, K]`, written. score: `[R, K]`. taken: bool
  `[R, K]`, whether there is such a completion at all."""

  tokens: jax.Array
  log_probs: jax.Array
  length: jax.Array
  score: jax.Array
  taken: jax.Array

  def take(self, index):
    """Those with the numbers `index [R, C]`."""

    def one(x):
      return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1)

    return jax.tree.map(one, self)


class _State(NamedTuple):
  step: jax.Array  # tokens written
  logits: jax.Array  # [R * K, V], after them
  position: jax.Array  # [R * K], of the next token
  cache: Cache
  running: _Beams
  ended: _Beams
  improvable: jax.Array  # bool [R], whether a running beam might still be among the best


@dataclasses.dataclass(frozen=True)
class _Rules:
  """How many beams there are, how long they get, and when a search is over: see `beam_search`."""

  width: int
  max_new_tokens: int
  eos_ids: tuple[int, ...]
  length_penalty: float
  early_stopping: bool | str

  def score(self, log_probs, length):
    """Of completions of a length, by the sums of their log-probabilities."""
    return log_probs / jnp.float32(length) ** self.length_penalty

  def ends(self, token, written):
    """bool, like `token`: which ones end their completion, whose number `written` they are."""
    eos = jnp.asarray(self.eos_ids, jnp.int32)
    return jnp.any(token[..., None] == eos, axis=-1) | (written == self.max_new_tokens)

  def going(self, state):
    """Whether any prompt's search goes on."""
    open_ = jnp.any(state.improvable) & (state.step < self.max_new_tokens)
    return open_ & ~jnp.all(state.ended.taken) if self.early_stopping is True else open_

  def closed(self, state):
    """bool `[R]`: of which prompts no more completions are taken."""
    closed = ~state.improvable
    if self.early_stopping is True:
      closed |= jnp.all(state.ended.taken, axis=1)
    return closed

  def improvable(self, state, written, running, ended):
    """The state's successor's `improvable`, with `written` tokens."""
    never = self.early_stopping == "never" and self.length_penalty > 0
    possible = self.score(running.score[:, 0], self.max_new_tokens if never else written)
    worst = jnp.where(ended.taken, jnp.min(ended.score, axis=1, keepdims=True), _NEVER)
    return state.improvable & jnp.any(possible[:, None] > worst, axis=1)


@partial(jax.jit, static_argnames=("model", "rules"))
def _search(variables, tokens, positions, prompt, *, model, rules) -> _Beams:
  """The `rules.width` best completions of each prompt, best first."""
  vocabulary = model.config.vocab_size
  # As many as leave `width` beams to go on with if all the others end.
  count = min(max(2, 1 + len(rules.eos_ids)) * rules.width, rules.width * vocabulary)

  def step(state):
    written = state.step + 1
    candidates, beam, token = _candidates(state, count)
    ends = rules.ends(token, written)
    ended = _ended(state, candidates, ends, rules)
    best = jax.lax.top_k(candidates.score + ends * _NEVER, rules.width)[1]  # [R, K]
    running = candidates.take(best)
    first = rules.width * jnp.arange(len(best))[:, None]  # of each prompt's beams
    parent = jnp.take_along_axis(beam, best, axis=1) + first
    # Beams of a prompt share their slots' positions, so that only keys and values move.
    cache = state.cache.take(parent.reshape(-1))
    last = jnp.take_along_axis(token, best, axis=1).reshape(-1, 1)
    cache, logits = decode.advance(model, variables, cache, last, state.position[:, None])
    improvable = rules.improvable(state, written, running, ended)
    return _State(written, logits, state.position + 1, cache, running, ended, improvable)

  state = _begun(variables, tokens, positions, prompt, model, rules)
  return jax.lax.while_loop(rules.going, step, state).ended


def _begun(variables, tokens, positions, prompt, model, rules) -> _State:
  """The prompts are read, and nothing is written."""
  width = rules.width
  cache, logits, start = decode.begin(model, variables, tokens, positions)
  cache = cache.expand(width, layout.slots(cache.positions.shape[1] + rules.max_new_tokens))
  shape = (len(tokens), width, rules.max_new_tokens)
  empty = _Beams(
    jnp.zeros(shape, jnp.int32),
    jnp.zeros(shape, jnp.float32),
    jnp.zeros(shape[:2], jnp.int32),
    jnp.full(shape[:2], _NEVER, jnp.float32),
    jnp.broadcast_to(prompt[:, None] < 0, shape[:2]),
  )
  return _State(
    jnp.int32(0),
    jnp.repeat(logits, width, axis=0),
    jnp.repeat(start, width),
    cache,
    empty._replace(score=empty.score.at[:, 0].set(0)),  # all begin alike, so one begins
    empty,
    prompt >= 0,
  )


def _candidates(state: _State, count: int) -> tuple[_Beams, jax.Array, jax.Array]:
  """The `count` most probable ways to go on by a token; `[R, C]`, of which beam, by which token.

  Their scores are sums of log-probabilities, the largest first.
  """
  rows, width = state.running.score.shape
  vocabulary = state.logits.shape[-1]
  log_probs = jax.nn.log_softmax(state.logits).reshape(rows, width, vocabulary)
  scores = (log_probs + state.running.score[..., None]).reshape(rows, -1)
  scores, index = jax.lax.top_k(scores, count)  # [R, C]
  beam, token = index // vocabulary, index % vocabulary
  chosen = jnp.take_along_axis(log_probs.reshape(rows, -1), index, axis=1)
  before = state.running.take(beam)
  candidates = _Beams(
    before.tokens.at[:, :, state.step].set(token),
    before.log_probs.at[:, :, state.step].set(chosen),
    before.length + 1,
    scores,
    before.taken,
  )
  return candidates, beam, token


def _ended(state: _State, candidates: _Beams, ends: jax.Array, rules: _Rules) -> _Beams:
  """The best of what had ended and of the candidates that end now."""
  ends = ends & (jnp.arange(ends.shape[1]) < rules.width)
  score = rules.score(candidates.score, state.step + 1)
  closed = rules.closed(state)[:, None].astype(jnp.float32)
  score = score + _NEVER * (closed + ~ends)
  both = jax.tree.map(
    lambda a, b: jnp.concatenate([a, b], axis=1),
    state.ended,
    candidates._replace(score=score, taken=ends),
  )
  return both.take(jax.lax.top_k(both.score, rules.width)[1])
