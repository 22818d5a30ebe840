"""Matrix products: operands as they are, float32 accumulation, on layouts that run fast.

float32 operands multiply in full float32 on every backend (a TPU would otherwise round them
to bfloat16). bfloat16 operands with a float32 result are the native mode of matrix units.
"""

import jax
import jax.numpy as jnp

from research.core.sharding import is_spread


def matmul(a: jax.Array, b: jax.Array, contract: tuple[int, int], batch: int = 0) -> jax.Array:
  """Contracts axis `contract[0]` of `a` with `contract[1]` of `b` -> float32.

  The first `batch` axes of both are batch axes. The result has the batch axes, then the
  other axes of `a`, then those of `b`.
  """
  axes = tuple(range(batch))
  return jax.lax.dot_general(
    a,
    b,
    ((contract[:1], contract[1:]), (axes, axes)),
    precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )


def outer(a: jax.Array, b: jax.Array, batch: int = 0) -> jax.Array:
  """`a^T b`, as in weight gradients: `[..., n, p]`, `[..., n, q]` -> float32 `[..., p, q]`.

  CPUs have no bfloat16 product that contracts the first axes of both operands, and would
  convert both to float32; there the thinner operand is transposed first, by a product with
  the identity, exact and cheap, since the compiler would fold a plain transpose back in.
  """

  def thin_first(a, b):
    if a.shape[-1] > b.shape[-1]:
      # The barrier keeps the product from being turned back into the one to avoid.
      return jnp.swapaxes(jax.lax.optimization_barrier(thin_first(b, a)), -1, -2)
    eye = jnp.broadcast_to(
      jnp.eye(a.shape[-1], dtype=a.dtype), (*a.shape[:-2], a.shape[-1], a.shape[-1])
    )
    turned = matmul(eye, a, (batch + 1, batch + 1), batch).astype(a.dtype)
    return matmul(turned, b, (batch + 1, batch), batch)

  return jax.lax.platform_dependent(
    a, b, cpu=thin_first, default=lambda a, b: matmul(a, b, (batch, batch), batch)
  )


def outer_of_rows(a: jax.Array, b: jax.Array) -> jax.Array:
  """`outer` over all leading axes: `[..., p]`, `[..., q]` -> float32 `[p, q]`.

  Rows that are spread over devices stay where they are: to make one axis of several would gather
  them.
  """
  if not is_spread():
    return outer(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))
  rows = tuple(range(a.ndim - 1))
  return jax.lax.dot_general(
    a,
    b,
    ((rows, rows), ((), ())),
    precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )


def row_sums(x: jax.Array) -> jax.Array:
  """Sums over the last axis; on CPUs, whose loops of exp and sum are not vectorized, a product."""
  return jax.lax.platform_dependent(
    x,
    cpu=lambda x: matmul(x, jnp.ones(x.shape[-1:], x.dtype), (x.ndim - 1, 0)),
    default=lambda x: jnp.sum(x, axis=-1),
  )
