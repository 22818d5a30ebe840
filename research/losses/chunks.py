"""Sums of token losses, a chunk of tokens at a time, so that `[tokens, vocabulary]` never exists.

B batch, S sequence, s tokens of a row in one chunk, D model, N what is told of each token.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research.core import sharding, tree

Tree = Any
# `(variables, hidden [B, s, D], *others) -> (losses [B, s], also told [B, s], ...)`
TokenLosses = Callable[..., tuple[jax.Array, ...]]

MAX_UNROLLED = 8  # chunks laid out as straight-line code, which CPUs run faster


def weighted_sum(
  losses: TokenLosses,
  variables: Tree,
  hidden: jax.Array,
  others: tuple[Tree, ...],
  weights: jax.Array,
  *,
  chunk_tokens: int,
) -> tuple[jax.Array, jax.Array]:
  """`sum of weights * losses`, and what each token adds to it.

  Tokens of weight 0 are moved to the end of their row, and a chunk that holds nothing else
  is skipped: prompts and padding cost no logits. The gradient of a chunk is taken while its
  logits are at hand, so that they are computed once; the backward pass keeps `[B, S, D]`.

  Args:
    losses: `(variables, hidden [B, s, D], *others) -> (losses [B, s], also told [B, s], ...)`.
    variables: what the losses need beside hidden states; gradients are computed only for leaves
      that are differentiated.
    hidden: `[B, S, D]`.
    others: trees of `[B, S, ...]` for the losses' other arguments, constants to differentiation.
    weights: float32 `[B, S]`, constants to differentiation.
    chunk_tokens: tokens at a time, over all rows.

  Returns:
    The sum, and float32 `[N, B, S]`: weight times each of what `losses` returns. Gradients flow
    through the sum alone.
  """
  batch, length, _ = hidden.shape
  # Where the tokens of a row are on several devices, each moves its own.
  parts = sharding.parts("sequence")
  length //= parts
  chunks = min(length, max(1, -(-batch * parts * length // chunk_tokens)))
  width = -(-length // chunks)
  order = jnp.argsort(weights.reshape(batch, parts, length) == 0, axis=2, stable=True)

  def split(x):  # [B, S, ...] -> [chunks, B, s, ...]
    rest = x.shape[2:]
    x = x.reshape(batch, parts, length, *rest)
    x = jnp.take_along_axis(x, order.reshape(order.shape + (1,) * len(rest)), axis=2)
    x = jnp.pad(x, [(0, 0), (0, 0), (0, chunks * width - length)] + [(0, 0)] * len(rest))
    x = jnp.moveaxis(x.reshape(batch, parts, chunks, width, *rest), 2, 0)
    x = x.reshape(chunks, batch, parts * width, *rest)
    return sharding.constrain(x, None, "batch", "sequence", *(None for _ in rest))

  total, told = _sums(losses, variables, split(hidden), jax.tree.map(split, others), split(weights))
  told = jnp.moveaxis(told.reshape(chunks, -1, batch, parts, width), 0, 3)
  told = told.reshape(-1, batch, parts, chunks * width)[..., :length]
  told = jnp.take_along_axis(told, jnp.argsort(order, axis=2)[None], axis=3)
  return total, told.reshape(-1, batch, parts * length)


def told(
  of_chunk: Callable[[jax.Array, jax.Array], Tree],
  hidden: jax.Array,
  targets: jax.Array,
  *,
  chunk_tokens: int,
) -> Tree:
  """What a function tells of each token, a chunk at a time; for figures, not for gradients.

  Args:
    of_chunk: `(hidden [s, D], targets [s]) -> a tree of [s]`.
    hidden: `[B, S, D]`.
    targets: int32 `[B, S]`.
    chunk_tokens: tokens at a time, over all rows.

  Returns:
    The tree, of `[B, S]`.
  """
  size = targets.size
  chunk = min(size, chunk_tokens)
  padding = -size % chunk
  x = jnp.pad(hidden.reshape(size, -1), ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[-1])
  y = jnp.pad(targets.reshape(size), (0, padding)).reshape(-1, chunk)
  found = jax.lax.map(lambda pair: of_chunk(*pair), (x, y))
  return jax.tree.map(lambda told: told.reshape(-1)[:size].reshape(targets.shape), found)


def _chunk_sums(losses, variables, hidden, others, weights):
  found = losses(variables, hidden, *others)
  return jnp.sum(found[0] * weights), jnp.stack([each * weights for each in found])


def _nothing(of_chunk, variables, chunk):
  """What `of_chunk` gives of a chunk without a weight."""
  shapes = jax.eval_shape(of_chunk, variables, *chunk)
  return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)


def _scan(body, init, chunks):
  count = chunks[0].shape[0]
  return jax.lax.scan(body, init, chunks, unroll=count if count <= MAX_UNROLLED else 1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(losses, variables, hidden, others, weights):
  of_chunk = partial(_chunk_sums, losses)

  def body(total, chunk):
    found, told = jax.lax.cond(
      jnp.any(chunk[2] != 0),
      lambda: of_chunk(variables, *chunk),
      lambda: _nothing(of_chunk, variables, chunk),
    )
    return total + found, told

  return _scan(body, jnp.zeros(()), (hidden, others, weights))


def _forward(losses, variables, hidden, others, weights):
  wanted, fixed = tree.differentiated(variables)  # a frozen head costs no gradient
  data = jax.tree.map(lambda leaf: leaf.value, (hidden, others, weights))

  def loss(wanted, hidden, others, weights):
    return _chunk_sums(losses, tree.combine(wanted, fixed), hidden, others, weights)

  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), wanted)

  def body(carry, chunk):
    total, dvariables = carry

    def live():
      found, (d, dhidden) = jax.value_and_grad(loss, (0, 1), has_aux=True)(wanted, *chunk)
      return found, jax.tree.map(lambda s, g: s + g, dvariables, d), dhidden

    def skipped():
      return _nothing(loss, wanted, chunk), dvariables, jnp.zeros_like(chunk[0])

    (found, told), dvariables, dhidden = jax.lax.cond(jnp.any(chunk[2] != 0), live, skipped)
    return (total + found, dvariables), (dhidden, told)

  (total, dvariables), (dhidden, told) = _scan(body, (jnp.zeros(()), zeros), data)
  dvariables = jax.tree.map(lambda leaf, d: d.astype(leaf.dtype), wanted, dvariables)
  return (total, told), (dvariables, dhidden)


def _backward(losses, residuals, g):
  del losses
  dvariables, dhidden = jax.tree.map(lambda d: (g[0] * d).astype(d.dtype), residuals)
  return dvariables, dhidden, None, None


_sums.defvjp(_forward, _backward, symbolic_zeros=True)
