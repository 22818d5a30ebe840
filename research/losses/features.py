"""How far a student's hidden states are from its teacher's.

B batch, S sequence, D student's and E teacher's width.

All take hidden states of the same tokens, `[B, S, D]` and `[B, S, E]`, and a projection `[D, E]`
for the student's where widths differ. The teacher is a constant. Sums are in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.core.products import matmul


def mean_squared(
  student: jax.Array, teacher: jax.Array, projection: jax.Array | None = None
) -> jax.Array:
  """The mean over the width of squared differences (Jiao et al. 2019, arXiv:1909.10351, eq. 8).

  Returns:
    float32 `[B, S]`.
  """
  ours, theirs = _aligned(student, teacher, projection)
  return jnp.mean(jnp.square(ours - theirs), axis=-1)


def cosine(
  student: jax.Array, teacher: jax.Array, projection: jax.Array | None = None
) -> jax.Array:
  """1 less the cosine, between 0 and 2 (DistilBERT: Sanh et al. 2019, arXiv:1910.01108).

  Returns:
    float32 `[B, S]`; 1 where a side is 0.
  """
  ours, theirs = _aligned(student, teacher, projection)
  return 1 - jnp.sum(_normalized(ours) * _normalized(theirs), axis=-1)


def normalized(
  student: jax.Array, teacher: jax.Array, projection: jax.Array | None = None
) -> jax.Array:
  """The squared distance of both divided by their norms: PKD (Sun et al. 2019, arXiv:1908.09355).

  Their equation 7, which is twice `cosine`.

  Returns:
    float32 `[B, S]`.
  """
  ours, theirs = _aligned(student, teacher, projection)
  return jnp.sum(jnp.square(_normalized(ours) - _normalized(theirs)), axis=-1)


FEATURES: dict[str, Callable[..., jax.Array]] = {
  "cosine": cosine,
  "mean_squared": mean_squared,
  "normalized": normalized,
}


def linear_cka(student: jax.Array, teacher: jax.Array, weights: jax.Array) -> jax.Array:
  """1 less the linear CKA of all tokens (Kornblith et al. 2019, arXiv:1905.00414, section 3).

  `1 - |Y^T X|^2 / (|X^T X| |Y^T Y|)`, Frobenius norms of what is centred over tokens: 0 where one
  side is a rotation, a multiple and a shift of the other. So widths may differ and nothing is
  projected. It compares tokens with each other and is no sum over them: the mean of slices is not
  the whole's.

  Args:
    student: `[B, S, D]`. teacher: `[B, S, E]`.
    weights: float32 `[B, S]`, what each token counts; 0 at padding.

  Returns:
    A float32 scalar; 1 where a side is the same at all tokens.
  """
  _require_same_tokens(student, teacher)
  ours = _centred(student, weights)
  theirs = _centred(jax.lax.stop_gradient(teacher), weights)
  between = jnp.sum(jnp.square(matmul(theirs, ours, (0, 0))))
  within = jnp.sum(jnp.square(matmul(ours, ours, (0, 0))))
  within *= jnp.sum(jnp.square(matmul(theirs, theirs, (0, 0))))
  return 1 - between * jax.lax.rsqrt(jnp.maximum(within, _TINY))


_TINY = 1e-24  # a squared length of nothing


def _centred(hidden: jax.Array, weights: jax.Array) -> jax.Array:
  """`[B * S, width]`, the tokens' distances to their mean times the roots of their weights.

  Their mean square is 1, so that fourth powers stay within float32.
  """
  flat = hidden.astype(jnp.float32).reshape(-1, hidden.shape[-1])
  counts = weights.astype(jnp.float32).reshape(-1, 1)
  total = jnp.maximum(counts.sum(), _TINY)
  apart = (flat - jnp.sum(counts * flat, axis=0) / total) * jnp.sqrt(counts / total)
  return apart * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(apart)), _TINY))


def _aligned(student, teacher, projection):
  """Both sides in float32, of the teacher's width."""
  _require_same_tokens(student, teacher)
  width, wanted = student.shape[-1], teacher.shape[-1]
  if projection is not None:
    if projection.shape != (width, wanted):
      raise ValueError(
        f"the projection is {list(projection.shape)}; from the student's width to the teacher's is"
        f" [{width}, {wanted}]"
      )
    student = matmul(student, projection.astype(student.dtype), (student.ndim - 1, 0))
  elif width != wanted:
    raise ValueError(
      f"the student's hidden states are {width} wide and the teacher's {wanted}: they need a"
      f" projection [{width}, {wanted}]"
    )
  return student.astype(jnp.float32), jax.lax.stop_gradient(teacher.astype(jnp.float32))


def _normalized(x):
  """`x` over its norm; 0, with a derivative that is finite, where it is 0."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), _TINY))


def _require_same_tokens(student, teacher):
  if student.shape[:-1] != teacher.shape[:-1]:
    raise ValueError(
      f"hidden states of {list(student.shape[:-1])} and {list(teacher.shape[:-1])} tokens: student"
      " and teacher read the same rows"
    )
