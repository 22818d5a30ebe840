"""Contrastive search: probable tokens that do not repeat what was said (Su et al. 2022).

Of the `top_k` most probable tokens comes the one with the highest
`(1 - alpha) * probability - alpha * similarity`, where similarity is the largest cosine between
what the model would make of the token, its last hidden state, and of any token before it
(arXiv:2202.06417, equation 5; as transformers defines it).

R prompts, K candidates, P prompt slots, M new tokens at most, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.generation import checks, decode, engine, layout
from research.generation.engine import Completion, Written
from research.models.decoder import Cache, Decoder


def contrastive_search(
  model: Decoder,
  variables: Any,
  prompts: Sequence[Sequence[int]],
  *,
  penalty_alpha: float,
  top_k: int,
  max_new_tokens: int,
  eos_ids: Sequence[int],
  pad_id: int = 0,
  batch_size: int = 32,
  unrolled: bool | None = None,
  which: Sequence[int] | None = None,
  progress: Callable[[int], object] | None = None,
) -> list[Completion]:
  """The completion of every prompt.

  Args:
    penalty_alpha: 0 is the most probable token, 1 the least similar one of the candidates.
    top_k: candidates, each of which the model reads; 1 is the most probable token.
    batch_size: candidates at a time; at least those of one prompt.
    The others: see `research.generation.generate`.

  Raises:
    ValueError: as `generate`, or `penalty_alpha` is not within 0 and 1.
  """
  checks.decoder(model, "contrastive search")
  checks.positive(top_k=top_k, max_new_tokens=max_new_tokens, batch_size=batch_size)
  if not 0 <= penalty_alpha <= 1:
    raise ValueError(f"penalty_alpha is {penalty_alpha}; it is within 0 and 1")
  top_k = min(top_k, model.config.vocab_size)
  prompts = decode.led(model, variables, prompts, max_new_tokens)
  chosen = decode.slots(variables, which, len(prompts))
  run_model, run_variables = decode.prepare(model, variables, unrolled)

  def write(batch: layout.Batch) -> Written:
    return _search(
      decode.route(run_variables, chosen, batch.prompt),
      batch.tokens,
      batch.positions,
      batch.prompt,
      jnp.float32(penalty_alpha),
      model=run_model,
      top_k=top_k,
      max_new_tokens=max_new_tokens,
      eos_ids=tuple(eos_ids),
    )

  shape = {"samples": 1, "batch_size": max(1, batch_size // top_k), "pad_id": pad_id}
  return engine.in_batches(write, prompts, **shape, progress=progress)


class _State(NamedTuple):
  step: jax.Array  # tokens written
  logits: jax.Array  # [R, V], after them
  position: jax.Array  # [R], of the next token
  cache: Cache  # K rows a prompt, all alike
  directions: jax.Array  # [R, P + M, D], of the hidden states so far, of length 1
  known: jax.Array  # bool [R, P + M], whether there is one
  written: Written


@partial(jax.jit, static_argnames=("model", "top_k", "max_new_tokens", "eos_ids"))
def _search(
  variables, tokens, positions, prompt, alpha, *, model, top_k, max_new_tokens, eos_ids
) -> Written:
  rows, length = tokens.shape
  cache = model.init_cache(rows, length)
  hidden, cache = model.apply(variables, tokens, positions, cache=cache, method="hidden")
  room = ((0, 0), (0, max_new_tokens))
  state = _State(
    jnp.int32(0),
    model.apply(variables, hidden[:, -1], method="head"),
    positions[:, -1] + 1,
    cache.expand(top_k, layout.slots(length + max_new_tokens)),
    jnp.pad(_direction(hidden), (*room, (0, 0))),
    jnp.pad((positions >= 0) & (tokens >= 0), room),  # virtual tokens say nothing
    Written(
      jnp.zeros((rows, max_new_tokens), jnp.int32),
      jnp.zeros((rows, max_new_tokens), jnp.float32),
      jnp.zeros((rows,), jnp.int32),
      prompt < 0,
    ),
  )

  def going(state):
    return (state.step < max_new_tokens) & ~jnp.all(state.written.finished)

  def step(state):
    probability, candidates = jax.lax.top_k(jax.nn.softmax(state.logits), top_k)  # [R, K]
    hidden, cache = model.apply(
      variables,
      candidates.reshape(-1, 1),
      jnp.repeat(state.position, top_k)[:, None],
      cache=state.cache,
      method="hidden",
    )
    hidden = hidden.reshape(rows, top_k, -1)
    directions = _direction(hidden)  # [R, K, D]
    cosines = jnp.einsum("rkd,rtd->rkt", directions, state.directions)
    similarity = jnp.max(jnp.where(state.known[:, None], cosines, -1.0), axis=-1)
    best = jnp.argmax((1 - alpha) * probability - alpha * similarity, axis=1)[:, None]  # [R, 1]

    token = jnp.take_along_axis(candidates, best, axis=1)[:, 0]
    chosen = jnp.take_along_axis(hidden, best[..., None], axis=1)[:, 0]  # [R, D]
    direction = jnp.take_along_axis(directions, best[..., None], axis=1)  # [R, 1, D]
    parent = jnp.repeat(best[:, 0] + top_k * jnp.arange(rows), top_k)
    at = length + state.step
    return _State(
      state.step + 1,
      model.apply(variables, chosen, method="head"),
      state.position + 1,
      cache.take_last(parent),
      jax.lax.dynamic_update_slice_in_dim(state.directions, direction, at, axis=1),
      state.known.at[:, at].set(True),
      state.written.put(state.step, token, decode.log_prob(state.logits, token), eos_ids),
    )

  return jax.lax.while_loop(going, step, state).written


def _direction(hidden: jax.Array) -> jax.Array:
  """`[..., D]` of length 1, float32."""
  wide = hidden.astype(jnp.float32)
  return wide / jnp.linalg.norm(wide, axis=-1, keepdims=True)
