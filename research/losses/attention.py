"""How far a student's attention is from its teacher's: its maps, and relations of its vectors.

B batch, H student's and G teacher's heads, S queries, T keys, D student's and E teacher's width,
R relation heads.

All give float32 `[B, S]`, a loss of each query, a mean over heads; 0 for a query that sees
nothing, as padding does. The teacher is a constant. `mask` is bool `[B, S, T]`, or broadcasts to
it: the keys that a query sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from research.core.products import matmul

_UNSEEN = -1e30  # a score of no probability; finite, so that a query that sees nothing is no NaN


def map_heads(teacher: jax.Array, heads: int, chosen: Sequence[int] | None = None) -> jax.Array:
  """The teacher's scores or maps for each of the student's heads.

  Args:
    teacher: `[B, G, S, T]`.
    heads: H, of the student.
    chosen: the teacher's head for each of the student's. Without it, groups of neighbouring heads
      of the teacher are averaged, or its heads repeated, as grouped queries have them.

  Returns:
    `[B, H, S, T]`.

  Raises:
    ValueError: neither count is a multiple of the other, or `chosen` does not fit.
  """
  count = teacher.shape[1]
  if chosen is not None:
    if len(chosen) != heads or not all(0 <= head < count for head in chosen):
      raise ValueError(
        f"chosen heads {list(chosen)}: {heads} numbers from 0 to {count - 1} are needed, one for"
        " each of the student's heads"
      )
    return teacher[:, jnp.asarray(chosen)]
  if heads % count == 0:
    return jnp.repeat(teacher, heads // count, axis=1)
  if count % heads == 0:
    batch, _, queries, keys = teacher.shape
    return teacher.reshape(batch, heads, count // heads, queries, keys).mean(axis=2)
  raise ValueError(
    f"{heads} heads of the student and {count} of the teacher: neither is a multiple of the other;"
    " choose a head of the teacher for each"
  )


def map_kl(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
  """`KL(teacher's map || student's)` over keys (MiniLM: Wang et al. 2020, arXiv:2002.10957, 3.1).

  Args:
    student, teacher: scores `[B, H, S, T]`, before the softmax and the mask.
  """
  _require_one_shape(student, teacher)
  seen = mask[:, None]  # [B, 1, S, T]
  log_p, log_q = _log_map(student, seen), _log_map(jax.lax.stop_gradient(teacher), seen)
  terms = jnp.where(seen, jnp.exp(log_q) * (log_q - log_p), 0.0)
  return jnp.mean(jnp.sum(terms, axis=-1), axis=1)


def score_mean_squared(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
  """The mean over seen keys of squared differences of scores: TinyBERT (arXiv:1909.10351, eq. 7).

  Args:
    student, teacher: scores `[B, H, S, T]`, before the softmax and the mask.
  """
  _require_one_shape(student, teacher)
  seen = mask[:, None]
  apart = student.astype(jnp.float32) - jax.lax.stop_gradient(teacher.astype(jnp.float32))
  squares = jnp.where(seen, jnp.square(apart), 0.0)
  keys = jnp.sum(jnp.broadcast_to(mask, squares[:, 0].shape), axis=-1)  # [B, S]
  return jnp.mean(jnp.sum(squares, axis=-1), axis=1) / jnp.maximum(keys, 1)


def relation_kl(
  student: jax.Array, teacher: jax.Array, mask: jax.Array, *, heads: int
) -> jax.Array:
  """KL between relations of vectors: how each token's is like the others', head by head.

  The vectors are split in `heads` parts, and a relation is the softmax of their scaled products
  with themselves. So widths and counts of heads may differ. Of values with as many parts as heads
  it is MiniLM's value relation (arXiv:2002.10957, 3.2); of queries, of keys and of values,
  with any number of parts, it is MiniLMv2's (Wang et al. 2020, arXiv:2012.15828, 3.1).

  Args:
    student: `[B, S, D]`, queries, keys or values of all heads side by side.
    teacher: `[B, S, E]`.
    mask: bool `[B, S, S]`.
    heads: R, which divides both widths.

  Raises:
    ValueError: `heads` does not divide a width.
  """
  for whose, width in (("student", student.shape[-1]), ("teacher", teacher.shape[-1])):
    if width % heads:
      raise ValueError(
        f"{heads} relation heads do not divide the {whose}'s vectors, which are {width} wide"
      )
  return map_kl(_relations(student, heads), _relations(teacher, heads), mask)


def _relations(vectors: jax.Array, heads: int) -> jax.Array:
  """Scaled products of each token's parts with the others': `[B, S, D]` -> `[B, R, S, S]`."""
  batch, length, width = vectors.shape
  parts = jnp.swapaxes(vectors.reshape(batch, length, heads, width // heads), 1, 2)
  return matmul(parts, parts, (3, 3), batch=2) * (width // heads) ** -0.5


def _log_map(scores: jax.Array, seen: jax.Array) -> jax.Array:
  return jax.nn.log_softmax(jnp.where(seen, scores.astype(jnp.float32), _UNSEEN), axis=-1)


def _require_one_shape(student: jax.Array, teacher: jax.Array) -> None:
  if student.shape != teacher.shape:
    raise ValueError(
      f"scores {list(student.shape)} of the student and {list(teacher.shape)} of the teacher; where"
      " heads differ, map_heads"
    )
