"""Products of rows with the matrix of their group, as mixtures of experts need them.

Rows lie sorted by group: the first `sizes[0]` go with the first matrix, and so on. The work is
that of one product of all rows, whatever the number of groups.

M rows, E groups.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.core.matrix import Matrix, is_matrix
from research.core.products import matmul, outer

_BLOCKS = (8, 256)  # fewest and most rows of a block


@jax.custom_vjp
def grouped(x: jax.Array, kernels: jax.Array | Matrix, sizes: jax.Array) -> jax.Array:
  """Each row by the kernel of its group, in the type of `x` -> float32 `[M, out]`.

  Args:
    x: `[M, in]`, sorted by group.
    kernels: `[E, in, out]`; in another form than an array, its leaves learn through `astype`.
    sizes: int32 `[E]`, the rows of each group; their sum is M.
  """
  return _product(x, kernels.astype(x.dtype), sizes)


def _forward(x, kernels, sizes):
  learns = any(leaf.perturbed for leaf in jax.tree.leaves(kernels))
  x, kernels, sizes = (jax.tree.map(lambda leaf: leaf.value, each) for each in (x, kernels, sizes))
  return grouped(x, kernels, sizes), (x if learns else x[:, :0], kernels, sizes)


def _backward(residuals, g):
  # As in core/dot.py: products on operands of the type of `x`, where JAX's own would be float32.
  x, kernels, sizes = residuals
  g = g.astype(x.dtype)
  if is_matrix(kernels):
    # As in quant/qarray.py: made again, not kept.
    kernels, g = jax.lax.optimization_barrier((kernels, g))
  dx = _product(g, kernels.astype(x.dtype), sizes, transposed=True).astype(x.dtype)
  if not x.shape[-1]:  # nobody asks for theirs
    return dx, None, None
  dkernels = jax.lax.platform_dependent(x, g, sizes, cpu=_outer_looped, default=_outer_ragged)
  _, pull = jax.vjp(lambda kernels: kernels.astype(jnp.float32), kernels)
  return dx, *pull(dkernels), None


grouped.defvjp(_forward, _backward, symbolic_zeros=True)


def _product(x, kernels, sizes, transposed=False):
  """`[M, in]` by `[E, in, out]`, or if `transposed` by `[E, out, in]` -> `[M, out]`."""
  # CPUs have no ragged product: JAX would multiply every row by every kernel.
  return jax.lax.platform_dependent(
    x,
    kernels,
    sizes,
    cpu=lambda *args: _product_looped(*args, transposed),
    default=lambda *args: _product_ragged(*args, transposed),
  )


def _product_ragged(x, kernels, sizes, transposed):
  return jax.lax.ragged_dot(
    x,
    kernels.swapaxes(1, 2) if transposed else kernels,
    sizes,
    precision=_precision(x),
    preferred_element_type=jnp.float32,
  )


def _outer_ragged(x, g, sizes):
  return jax.lax.ragged_dot_general(
    x,
    g,
    sizes,
    jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], []),
    precision=_precision(x),
    preferred_element_type=jnp.float32,
  )


def _precision(x):
  return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def _product_looped(x, kernels, sizes, transposed):
  rows, block = x.shape[0], _block(x.shape[0], sizes.shape[0])
  x = jnp.pad(x, ((0, block), (0, 0)))

  def body(group, first, end, out):
    del end  # what a block writes past its group, the next group writes again
    kernel = jax.lax.dynamic_index_in_dim(kernels, group, keepdims=False)
    part = jax.lax.dynamic_slice_in_dim(x, first, block)
    found = matmul(part, kernel, (1, 1 if transposed else 0))
    return jax.lax.dynamic_update_slice_in_dim(out, found, first, axis=0)

  features = kernels.shape[1 if transposed else 2]
  out = jnp.zeros((rows + block, features), jnp.float32)
  return _over_blocks(sizes, block, body, out)[:rows]


def _outer_looped(x, g, sizes):
  block = _block(x.shape[0], sizes.shape[0])
  x, g = (jnp.pad(rows, ((0, block), (0, 0))) for rows in (x, g))

  def body(group, first, end, out):
    part, other = (jax.lax.dynamic_slice_in_dim(rows, first, block) for rows in (x, g))
    part = jnp.where((first + jnp.arange(block) < end)[:, None], part, 0)
    sofar = jax.lax.dynamic_index_in_dim(out, group, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(out, sofar + outer(part, other), group, axis=0)

  out = jnp.zeros((sizes.shape[0], x.shape[1], g.shape[1]), jnp.float32)
  return _over_blocks(sizes, block, body, out)


def _over_blocks(sizes: jax.Array, block: int, body: Callable[..., jax.Array], init: jax.Array):
  """`out = body(group, first row, end of the group, out)` over blocks of rows, in order.

  A group of n rows has `ceil(n / block)` blocks: none if it is empty, so that its kernel is not
  even read.
  """
  blocks = -(-sizes // block)  # [E]
  stops, ends = jnp.cumsum(blocks), jnp.cumsum(sizes)

  def step(number, out):
    group = jnp.searchsorted(stops, number, side="right")
    within = number - (stops[group] - blocks[group])
    return body(group, ends[group] - sizes[group] + within * block, ends[group], out)

  return jax.lax.fori_loop(0, stops[-1], step, init)


def _block(rows: int, groups: int) -> int:
  """Rows of a block: a power of two, at most those of an average group.

  Smaller blocks waste less at a group's end, but each of them copies its group's kernel.
  """
  low, high = _BLOCKS
  block = low
  while block < high and 2 * block <= rows // groups:
    block *= 2
  return block
