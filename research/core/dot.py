"""The matrix product that every projection uses.

bfloat16 operands accumulate in float32, forward and backward: the native mode of
matrix units (TPU, tensor cores, AMX). JAX's own transpose of a dot with a float32
result would run the backward products on float32 operands, several times slower,
hence the custom derivative of `products.dot`.
"""

import jax
from flax import struct

from research.core import products
from research.core.products import matmul


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
  return products.dot(x, kernel)


def across(a: jax.Array, kernel: jax.Array | Transposed) -> jax.Array:
  """`a^T kernel` in the type of `kernel`: `[in, r]`, `[in, out]` -> float32 `[r, out]`."""
  # As `outer` does on CPUs; the barrier keeps the compiler from folding the transpose back in.
  turned = jax.lax.optimization_barrier(a.astype(kernel.dtype).T)
  if isinstance(kernel, Transposed):
    return matmul(turned, kernel.values, (1, 1))
  return matmul(turned, kernel, (1, 0))
