"""The matrix product that every projection uses.

bfloat16 operands accumulate in float32, forward and backward: the native mode of
matrix units (TPU, tensor cores, AMX). JAX's own transpose of a dot with a float32
result would run the backward products on float32 operands, several times slower,
hence the custom derivative: cotangents are rounded to the operands' type first.
"""

from typing import Any

import jax
from flax import struct

from research.core.matrix import Matrix
from research.core.products import matmul, outer, outer_of_rows


@struct.dataclass
class Transposed(Matrix):
  """A kernel `[in, out]` held as `[out, in]`.

  With few rows a CPU multiplies bfloat16 by it in half the time: what it rearranges for its
  matrix unit is then the rows and not the kernel.
  """

  values: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    """See `Matrix`."""
    return self.values.shape[::-1]

  @property
  def dtype(self) -> Any:
    """See `Matrix`."""
    return self.values.dtype

  def astype(self, dtype: Any) -> jax.Array:
    """See `Matrix`."""
    return self.values.astype(dtype).T

  def product(self, x: jax.Array) -> jax.Array:
    """See `Matrix`; not for a kernel that trains."""
    values = self.values.astype(x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] > _FEW_ROWS:
      return matmul(x, values, (x.ndim - 1, 1))
    return matmul(values, rows, (1, 1)).T.reshape(*x.shape[:-1], -1)


_FEW_ROWS = 128


def dot(x: jax.Array, kernel: jax.Array | Matrix) -> jax.Array:
  """`x [..., in]` times `kernel [in, out]` in the type of `x` -> float32 `[..., out]`."""
  return kernel.product(x) if isinstance(kernel, Matrix) else _dot(x, kernel)


@jax.custom_vjp
def _dot(x, kernel):
  return matmul(x, kernel.astype(x.dtype), (x.ndim - 1, 0))


def _forward(x, kernel):
  return _dot(x, kernel), (x, kernel)


def _backward(residuals, g):
  x, kernel = residuals
  g = g.astype(x.dtype)
  dx = matmul(g, kernel.astype(x.dtype), (g.ndim - 1, 1)).astype(x.dtype)
  dkernel = outer_of_rows(x, g).astype(kernel.dtype)
  return dx, dkernel


_dot.defvjp(_forward, _backward)


def across(kernel: jax.Array | Matrix, a: jax.Array) -> jax.Array:
  """`kernel^T a` in the type of `kernel`: `[in, out]`, `[in, r]` -> float32 `[out, r]`."""
  a = a.astype(kernel.dtype)
  if isinstance(kernel, Transposed):
    return matmul(kernel.values, a, (1, 0))
  return outer(kernel.astype(kernel.dtype), a)
