"""Speculative decoding: a small model drafts tokens, and the model reads them in one pass.

The completions are distributed as the model's own (`research.generation.rejection`). Rows keep
different numbers of drafted tokens, so each has its own next slot in the cache: what was written
for tokens that did not stay is written over by the next ones.

B rows, g drafted tokens, P prompt slots, M new tokens at most, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research import peft
from research.generation import checks, decode, engine, layout, rejection, samplers
from research.generation.draft import Draft
from research.generation.engine import Completion, Written
from research.generation.samplers import Sampler, Seen, most_probable
from research.generation.stop import StopStrings
from research.models.cache import Cache
from research.models.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Speculation:
  """What speculative decoding wrote, and how often the draft was right.

  examined: drafted tokens up to the first of a pass that did not stay, or to the completion's end.
  accepted: of them, those that stayed. passes: of the model over drafted tokens, one a row.
  written: tokens that these gave. A stop string is found between passes: what is cut off behind it
    counts.
  """

  completions: list[Completion]
  examined: int
  accepted: int
  passes: int
  written: int

  @property
  def acceptance(self) -> float:
    """The share of drafted tokens that stay, of those whose predecessors do."""
    return self.accepted / max(self.examined, 1)

  @property
  def tokens_per_pass(self) -> float:
    """Tokens that a pass of the model gives, 1 without a draft; 0 where there was no pass."""
    return self.written / max(self.passes, 1)


def speculate(
  model: Decoder,
  variables: Any,
  prompts: Sequence[Sequence[int]],
  sampler: Sampler | None = None,
  *,
  draft: Draft,
  draft_tokens: int = 4,
  max_new_tokens: int,
  eos_ids: Sequence[int],
  stop: StopStrings | None = None,
  pad_id: int = 0,
  samples: int = 1,
  seed: int = 0,
  first_prompt: int = 0,
  batch_size: int = 32,
  unrolled: bool | None = None,
  progress: Callable[[int], object] | None = None,
) -> Speculation:
  """As `generate`, faster where `draft` is much smaller than the model and often right.

  The most probable tokens are those of `generate` (up to rounding, where two are equally
  probable); drawn ones are as probable as there, but are not the same for a seed.

  Args:
    draft: what drafts. draft_tokens: how many tokens at a time.
    The others: see `research.generation.generate`.

  Raises:
    ValueError: as `generate`; the vocabularies differ; or rotations depend on the documents'
      lengths (`Rope.by_length`) and completions come to where they change.
  """
  checks.decoder(model, "speculation")
  checks.decoder(draft.model, "drafting")
  checks.positive(
    draft_tokens=draft_tokens,
    max_new_tokens=max_new_tokens,
    samples=samples,
    batch_size=batch_size,
  )
  for each in (variables, draft.variables):
    decode.slots(each, None, len(prompts))
  (lead, own), (others, drafts) = map(decode.ahead, (variables, draft.variables))
  if lead != others:
    raise ValueError(
      f"the draft has {len(others)} virtual tokens and the model {len(lead)}; they must be alike"
    )
  for i, prompt in enumerate(prompts):
    name = f"prompt {i}"
    checks.prompt(model, prompt, max_new_tokens, name, before=own)
    checks.prompt(draft.model, prompt, max_new_tokens, f"{name}, for the draft,", before=drafts)
  longest = max(own, drafts) + max(map(len, prompts), default=0)
  _check_pair(model, draft.model, longest + max_new_tokens + draft_tokens)
  prompts = [[*lead, *prompt] for prompt in prompts]
  models, every = zip(
    decode.prepare(model, variables, unrolled), decode.prepare(*draft, unrolled), strict=True
  )
  same = {
    "models": models,
    "sampler": sampler or Sampler(),
    "eos_ids": tuple(eos_ids),
    "draft_tokens": draft_tokens,
  }
  counts = np.zeros((4,), np.int64)

  def write(batch: layout.Batch) -> Written:
    state, keys = start(
      every,
      batch.tokens,
      batch.positions,
      batch.prompt,
      batch.first_sample,
      seed,
      first_prompt,
      samples=batch.samples,
      max_new_tokens=max_new_tokens,
      **same,
    )
    readers = [stop.reader() for _ in range(len(keys))] if stop and stop.strings else []
    state = state._replace(written=engine.stopped(state.written, readers))
    # A pass writes at least one token, so that these many passes look for strings often enough.
    passes = max(1, engine.STRIDE // (draft_tokens + 1)) if readers else max_new_tokens
    while not np.all(state.written.finished | (state.written.length >= max_new_tokens)):
      state = go_on(every, state, keys, np.int32(passes), **same)
      state = state._replace(written=engine.stopped(state.written, readers))
    np.add(counts, np.asarray(state.counts), out=counts)
    return state.written

  shape = {"samples": samples, "batch_size": batch_size, "pad_id": pad_id}
  completions = engine.in_batches(write, prompts, **shape, progress=progress)
  return Speculation(completions, *counts.tolist())


def _check_pair(model: Decoder, draft: Decoder, longest: int) -> None:
  """Raises ValueError if the one cannot draft for the other."""
  sizes = model.config.vocab_size, draft.config.vocab_size
  if sizes[0] != sizes[1]:
    raise ValueError(
      f"the draft has {sizes[1]} tokens and the model {sizes[0]}; they must be alike"
    )
  for rope in (model.config.rope, model.config.local_rope):
    if rope is not None and rope.by_length and longest > rope.original_max_positions:
      raise ValueError(
        f"rotations of rope type {rope.kind!r} change at {rope.original_max_positions} positions, "
        f"and these completions reach {longest}; they cannot be speculated on"
      )


class _State(NamedTuple):
  token: jax.Array  # [B], the last one written, not yet in the model's cache
  previous: jax.Array  # [B], the one before it
  position: jax.Array  # [B], of `token`
  slot: jax.Array  # [B], that `token` takes in both caches
  caches: tuple[Cache, Cache]  # the model's and the draft's
  seen: Seen | None  # for a sampler that penalizes
  written: Written  # room for M + g + 1 tokens: passes write beyond what they keep
  counts: jax.Array  # int32 [4]: examined, accepted, passes, written


_STATIC = ("models", "sampler", "samples", "max_new_tokens", "eos_ids", "draft_tokens")


@partial(jax.jit, static_argnames=_STATIC)
def start(
  variables,
  tokens,
  positions,
  prompt,
  first_sample,
  seed,
  first_prompt,
  *,
  models,
  sampler,
  samples,
  max_new_tokens,
  eos_ids,
  draft_tokens,
) -> tuple[_State, jax.Array]:
  """After the prompts, which both models read, and the first new token; and the rows' keys."""
  rows, length = tokens.shape
  keys = decode.sample_keys(seed, prompt + first_prompt, first_sample, samples)
  room = max_new_tokens + draft_tokens
  caches, logits = [], []
  for model, own in zip(models, variables, strict=True):
    cache = model.init_cache(rows, length)
    cache, after = decode.advance(model, own, cache, tokens, positions)
    cache = cache.expand(samples, layout.slots(length + room))
    own_slots = jnp.full((rows * samples,), length, jnp.int32)
    caches.append(dataclasses.replace(cache, used=own_slots))
    logits.append(after)
  seen = None
  if sampler.penalizes:
    seen = Seen.of_prompt(tokens, positions, logits[0].shape[-1])
    seen = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), seen)

  batch = rows * samples
  token, log_prob, seen = decode.draw(
    sampler, jnp.repeat(logits[0], samples, axis=0), keys, 0, seen
  )
  written = Written(
    jnp.zeros((batch, room + 1), jnp.int32).at[:, 0].set(token),
    jnp.zeros((batch, room + 1), jnp.float32).at[:, 0].set(log_prob),
    jnp.ones((batch,), jnp.int32),
    jnp.repeat(prompt < 0, samples) | decode.is_any(token, eos_ids),
  )
  state = _State(
    token,
    jnp.repeat(tokens[:, -1], samples),
    jnp.repeat(positions[:, -1] + 1, samples),
    jnp.full((batch,), length, jnp.int32),
    (caches[0], caches[1]),
    seen,
    written,
    jnp.zeros((4,), jnp.int32),
  )
  return state, keys


@partial(
  jax.jit,
  static_argnames=("models", "sampler", "eos_ids", "draft_tokens"),
  donate_argnames="state",
)
def go_on(variables, state, keys, passes, *, models, sampler, eos_ids, draft_tokens) -> _State:
  """Drafts and reads, `passes` times at most, or until all rows have ended."""
  limit = state.written.tokens.shape[1] - draft_tokens - 1

  def going(carry):
    step, state = carry
    return (step < passes) & jnp.any(_open(state.written, limit))

  def step(carry):
    # What a row draws depends on its key and on how much it has written: on no other row.
    own = jax.vmap(jax.random.fold_in)(keys, carry[1].written.length)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2 * draft_tokens + 1,)))(own)
    drafted, proposal, cache = _drafted(
      models[1], variables[1], carry[1], sampler, uniform[:, :draft_tokens]
    )
    state = carry[1]._replace(caches=(carry[1].caches[0], cache))
    read = _read(models[0], variables[0], state, drafted, proposal, sampler, uniform)
    return carry[0] + 1, _kept(*read, limit=limit, eos_ids=eos_ids)

  return jax.lax.while_loop(going, step, (jnp.int32(0), state))[1]


def _open(written: Written, limit: int) -> jax.Array:
  return ~written.finished & (written.length < limit)


def _drafted(model, variables, state, sampler, uniform):
  """The draft's tokens `[B, g]`, what they were drawn from `[B, g, V]`, and its cache.

  For the most probable tokens nothing is drawn, and the second is None.
  """
  last = _last_position(model, variables)

  def draw(logits, seen, uniform):
    logits = sampler.penalize(logits, seen)
    if sampler.temperature == 0:
      return most_probable(logits), None
    weights = sampler.weights(logits)
    return samplers.draw(weights, uniform), weights / jnp.sum(weights, axis=-1, keepdims=True)

  def follow(carry, x):
    cache, token, seen = carry
    uniform, ahead = x
    position = jnp.minimum(state.position + ahead, last)[:, None]
    cache, logits = decode.advance(model, variables, cache, token[:, None], position)
    token, proposal = draw(logits, seen, uniform)
    return (cache, token, seen if seen is None else seen.add(token)), (token, proposal)

  # The token before the last may have been the last one drafted, which the draft never read.
  cache = state.caches[1].replace(used=state.slot - 1)
  pair = jnp.stack([state.previous, state.token], axis=1)
  positions = state.position[:, None] + jnp.array([-1, 0])
  cache, logits = decode.advance(model, variables, cache, pair, positions)
  token, proposal = draw(logits, state.seen, uniform[:, 0])
  seen = state.seen if state.seen is None else state.seen.add(token)
  ahead = jnp.arange(1, uniform.shape[1])
  (cache, _, _), (tokens, proposals) = jax.lax.scan(
    follow, (cache, token, seen), (uniform[:, 1:].T, ahead)
  )
  tokens = jnp.concatenate([token[None], tokens]).T  # [B, g]
  if proposal is not None:
    proposal = jnp.moveaxis(jnp.concatenate([proposal[None], proposals]), 0, 1)
  return tokens, proposal, cache


def _last_position(model, variables):
  return model.config.max_positions - 1 - peft.offset(variables.get("adapters", {}))


def _read(model, variables, state, drafted, proposal, sampler, uniform):
  """The model's pass over drafted tokens -> the state, with its cache; the tokens that come of it
  `[B, g + 1]`, of which the first of number `[B]` and one more count; and their log-probabilities.
  """
  count = drafted.shape[1]
  tokens = jnp.concatenate([state.token[:, None], drafted], axis=1)  # [B, g + 1]
  positions = state.position[:, None] + jnp.arange(count + 1)
  # Beyond the model's positions nothing is kept, but learned positions must be found there.
  positions = jnp.minimum(positions, _last_position(model, variables))
  cache = state.caches[0].replace(used=state.slot)
  hidden, cache = model.apply(variables, tokens, positions, cache=cache, method="hidden")
  logits = model.apply(variables, hidden, method="head")  # [B, g + 1, V]
  penalized, seen = [], state.seen
  for i in range(count + 1):
    penalized.append(sampler.penalize(logits[:, i], seen))
    if seen is not None and i < count:
      seen = seen.add(drafted[:, i])
  flat = jnp.stack(penalized, axis=1).reshape(-1, logits.shape[-1])
  if sampler.temperature == 0:
    best = most_probable(flat).reshape(tokens.shape)
    accepted, following = rejection.accept_most_probable(drafted, best)
  else:
    weights = sampler.weights(flat)
    target = (weights / jnp.sum(weights, axis=-1, keepdims=True)).reshape(logits.shape)
    accepted, following = rejection.accept(drafted, proposal, target, uniform[:, count:])
  index = jnp.arange(count + 1)
  new = jnp.where(index == accepted[:, None], following[:, None], jnp.roll(tokens, -1, axis=1))
  return (
    state._replace(caches=(cache, state.caches[1])),
    new,
    accepted,
    decode.log_prob(logits, new),
  )


def _kept(state, new, accepted, log_probs, *, limit, eos_ids):
  """The state with the tokens written that stay, up to an EOS token or the limit."""
  written = state.written
  going = _open(written, limit)
  index = jnp.arange(new.shape[1])
  ends = decode.is_any(new, eos_ids) & (index <= accepted[:, None])
  first = jnp.min(jnp.where(ends, index, new.shape[1]), axis=1)
  count = jnp.minimum(jnp.minimum(accepted, first) + 1, limit - written.length)
  count = jnp.where(going, count, 0)  # [B]

  write = jax.vmap(jax.lax.dynamic_update_slice)
  start = written.length[:, None]
  tokens = write(written.tokens, new, start)
  seen = state.seen
  if seen is not None:
    for i in range(new.shape[1]):
      seen = seen.add(new[:, i], i < count)
  after = jnp.concatenate([state.previous[:, None], state.token[:, None], new], axis=1)
  last = jnp.take_along_axis(after, count[:, None] + jnp.arange(2), axis=1)
  drafted = new.shape[1] - 1
  examined = jnp.minimum(jnp.minimum(accepted + 1, drafted), count)
  kept = jnp.minimum(accepted, count)
  counts = jnp.stack([examined, kept, jnp.ones_like(kept), count]) * going
  return _State(
    last[:, 1],
    last[:, 0],
    state.position + count,
    state.slot + count,
    state.caches,
    seen,
    Written(
      tokens,
      write(written.log_probs, log_probs, start),
      written.length + count,
      written.finished | (going & (first < count)),
    ),
    state.counts + jnp.sum(counts, axis=1),
  )
