"""Cross-entropy that never holds `[tokens, vocabulary]`.

B batch, S sequence, s tokens of a row in one chunk, D model, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research.core.products import matmul

Tree = Any
Head = Callable[[Tree, jax.Array], jax.Array]

MAX_UNROLLED = 8  # chunks laid out as straight-line code, which CPUs run faster


@jax.custom_vjp
def token_losses(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`-log softmax(logits)[target]` and whether the target is the largest logit.

  `logits [..., V]`, `targets [...]` -> float32 `[...]` in nats, bool `[...]`.
  """
  return _token_losses_forward(logits, targets)[0]


def _token_losses_forward(logits, targets):
  wide = logits.astype(jnp.float32)
  top = jnp.max(wide, axis=-1)
  log_total = top + jnp.log(_row_sums(jnp.exp(wide - top[..., None])))
  chosen = jnp.take_along_axis(wide, targets[..., None], axis=-1)[..., 0]
  return (log_total - chosen, chosen >= top), (logits, targets, log_total)


def _row_sums(x):
  """Sums over the last axis; on CPUs, whose loops of exp and sum are not vectorized, a product."""
  return jax.lax.platform_dependent(
    x,
    cpu=lambda x: matmul(x, jnp.ones(x.shape[-1:], x.dtype), (x.ndim - 1, 0)),
    default=lambda x: jnp.sum(x, axis=-1),
  )


def _token_losses_backward(residuals, g):
  # softmax - one_hot in a single pass over the logits; no gradient through what was counted.
  logits, targets, log_total = jax.lax.optimization_barrier(residuals)
  p = jnp.exp(logits.astype(jnp.float32) - log_total[..., None])
  hit = jnp.arange(logits.shape[-1]) == targets[..., None]
  return (jnp.where(hit, p - 1, p) * g[0][..., None]).astype(logits.dtype), None


token_losses.defvjp(_token_losses_forward, _token_losses_backward)


def of_tokens(
  head: Head,
  variables: Tree,
  hidden: jax.Array,
  targets: jax.Array,
  *,
  chunk_tokens: int = 512,
) -> jax.Array:
  """The loss of each token, float32 `[B, S]` in nats; see `judge_tokens`."""
  return judge_tokens(head, variables, hidden, targets, chunk_tokens=chunk_tokens)[0]


def judge_tokens(
  head: Head,
  variables: Tree,
  hidden: jax.Array,
  targets: jax.Array,
  *,
  chunk_tokens: int = 512,
) -> tuple[jax.Array, jax.Array]:
  """What `token_losses` says of each token, a chunk at a time; for figures, not for gradients.

  Args:
    head: `(variables, hidden [s, D]) -> logits [s, V]`. variables: what it needs.
    hidden: `[B, S, D]`.
    targets: int32 `[B, S]`.
    chunk_tokens: tokens at a time, over all rows.

  Returns:
    float32 `[B, S]` in nats, and bool `[B, S]`: whether the target has the largest logit.
  """
  size = targets.size
  chunk = min(size, chunk_tokens)
  padding = -size % chunk

  def of_chunk(pair):
    return token_losses(head(variables, pair[0]), pair[1])

  x = jnp.pad(hidden.reshape(size, -1), ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[-1])
  y = jnp.pad(targets.reshape(size), (0, padding)).reshape(-1, chunk)
  losses, best = (found.reshape(-1)[:size] for found in jax.lax.map(of_chunk, (x, y)))
  return losses.reshape(targets.shape), best.reshape(targets.shape)


def chunked(
  head: Head,
  variables: Tree,
  hidden: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  *,
  chunk_tokens: int = 256,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Weighted sum of token losses, a chunk of tokens at a time; token by token, what it adds up.

  Tokens of weight 0 are moved to the end of their row, and a chunk that holds nothing else
  is skipped: prompts and padding cost no logits. The gradient of a chunk is taken while its
  logits are at hand, so that they are computed once; the backward pass keeps `[B, S, D]`.

  Args:
    head: `(variables, hidden [B, s, D]) -> logits [B, s, V]`.
    variables: what the head needs; gradients are computed only for leaves that are
      differentiated.
    hidden: `[B, S, D]`.
    targets: int32 `[B, S]`.
    weights: float32 `[B, S]`, constants to differentiation.
    chunk_tokens: tokens at a time, over all rows.

  Returns:
    `(sum of weight * loss in nats, weight * loss [B, S], weight * [guess is right] [B, S])`;
    gradients flow through the first alone.
  """
  batch, length, _ = hidden.shape
  chunks = min(length, max(1, -(-batch * length // chunk_tokens)))
  width = -(-length // chunks)
  order = jnp.argsort(weights == 0, axis=1, stable=True)

  def split(x):  # [B, S, ...] -> [chunks, B, s, ...]
    x = jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)
    x = jnp.pad(x, [(0, 0), (0, chunks * width - length)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(batch, chunks, width, *x.shape[2:]), 1, 0)

  total, tokens = _sums(head, variables, split(hidden), split(targets), split(weights))
  tokens = jnp.moveaxis(tokens, 0, 2).reshape(2, batch, -1)[..., :length]  # [2, B, S]
  losses, right = jnp.take_along_axis(tokens, jnp.argsort(order, axis=1)[None], axis=2)
  return total, losses, right


def _chunk_sums(head, variables, hidden, targets, weights):
  losses, right = token_losses(head(variables, hidden), targets)
  return jnp.sum(losses * weights), jnp.stack([losses * weights, right * weights])


def _scan(body, init, chunks):
  count = chunks[0].shape[0]
  return jax.lax.scan(body, init, chunks, unroll=count if count <= MAX_UNROLLED else 1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(head, variables, hidden, targets, weights):
  def body(total, chunk):
    found, tokens = jax.lax.cond(
      jnp.any(chunk[2] != 0),
      lambda: _chunk_sums(head, variables, *chunk),
      lambda: (jnp.zeros(()), jnp.zeros((2, *chunk[2].shape))),
    )
    return total + found, tokens

  return _scan(body, jnp.zeros(()), (hidden, targets, weights))


def _forward(head, variables, hidden, targets, weights):
  # `perturbed` tells which leaves someone differentiates: a frozen head costs no gradient.
  wanted = jax.tree.map(lambda leaf: leaf.value if leaf.perturbed else None, variables)
  fixed = jax.tree.map(lambda leaf: None if leaf.perturbed else leaf.value, variables)

  def loss(wanted, hidden, targets, weights):
    merged = jax.tree.map(
      lambda a, b: b if a is None else a, wanted, fixed, is_leaf=lambda x: x is None
    )
    return _chunk_sums(head, merged, hidden, targets, weights)

  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), wanted)

  def body(carry, chunk):
    total, dvariables = carry

    def live():
      found, (d, dhidden) = jax.value_and_grad(loss, (0, 1), has_aux=True)(wanted, *chunk)
      return found, jax.tree.map(lambda s, g: s + g, dvariables, d), dhidden

    def skipped():
      nothing = jnp.zeros(()), jnp.zeros((2, *chunk[2].shape))
      return nothing, dvariables, jnp.zeros_like(chunk[0])

    (found, tokens), dvariables, dhidden = jax.lax.cond(jnp.any(chunk[2] != 0), live, skipped)
    return (total + found, dvariables), (dhidden, tokens)

  chunks = (hidden.value, targets.value, weights.value)
  (total, dvariables), (dhidden, tokens) = _scan(body, (jnp.zeros(()), zeros), chunks)
  dvariables = jax.tree.map(lambda leaf, d: d.astype(leaf.dtype), wanted, dvariables)
  return (total, tokens), (dvariables, dhidden)


def _backward(head, residuals, g):
  del head
  dvariables, dhidden = jax.tree.map(lambda d: (g[0] * d).astype(d.dtype), residuals)
  return dvariables, dhidden, None, None


_sums.defvjp(_forward, _backward, symbolic_zeros=True)
