"""The matrix product that every projection uses.

bfloat16 operands accumulate in float32, forward and backward: the native mode of
matrix units (TPU, tensor cores, AMX). JAX's own transpose of a dot with a float32
result would run the backward products on float32 operands, several times slower,
hence the custom derivative: cotangents are rounded to the operands' type first.
"""

import jax
from flax import struct

from research.core.products import matmul, outer


@struct.dataclass
class Transposed:
  """A kernel `[in, out]` held as `[out, in]`.

  With few rows a CPU multiplies bfloat16 by it in half the time: what it rearranges for its
  matrix unit is then the rows and not the kernel.
  """

  values: jax.Array

  @property
  def dtype(self):
    """The type of the numbers."""
    return self.values.dtype


_FEW_ROWS = 128


def dot(x: jax.Array, kernel: jax.Array | Transposed) -> jax.Array:
  """`x [..., in]` times `kernel [in, out]` in the type of `x` -> float32 `[..., out]`."""
  if isinstance(kernel, Transposed):
    values = kernel.values.astype(x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] > _FEW_ROWS:
      return matmul(x, values, (x.ndim - 1, 1))
    return matmul(values, rows, (1, 1)).T.reshape(*x.shape[:-1], -1)
  return _dot(x, kernel)


@jax.custom_vjp
def _dot(x, kernel):
  return matmul(x, kernel.astype(x.dtype), (x.ndim - 1, 0))


def _forward(x, kernel):
  return _dot(x, kernel), (x, kernel)


def _backward(residuals, g):
  x, kernel = residuals
  g = g.astype(x.dtype)
  dx = matmul(g, kernel.astype(x.dtype), (g.ndim - 1, 1)).astype(x.dtype)
  dkernel = outer(x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])).astype(kernel.dtype)
  return dx, dkernel


_dot.defvjp(_forward, _backward)


def across(a: jax.Array, kernel: jax.Array | Transposed) -> jax.Array:
  """`a^T kernel` in the type of `kernel`: `[in, r]`, `[in, out]` -> float32 `[r, out]`."""
  # As `outer` does on CPUs; the barrier keeps the compiler from folding the transpose back in.
  turned = jax.lax.optimization_barrier(a.astype(kernel.dtype).T)
  if isinstance(kernel, Transposed):
    return matmul(turned, kernel.values, (1, 1))
  return matmul(turned, kernel, (1, 0))
