"""AWQ: scales of inputs and clipped ranges that rounding harms least (arXiv:2306.00978).

All errors are of outputs, `tr(d^T H d)` for a change `d` of a kernel `[in, out]` that reads inputs
whose products are `H`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from research.core.products import matmul
from research.quant.packing import split
from research.quant.qarray import QArray, between, encode, quantize
from research.quant.scheme import INTEGERS, Scheme

_RATIOS = 20  # powers of the inputs' sizes that are tried, from 0
_SHRINKS = 10  # ranges that are tried, each a twentieth less


def search(
  kernels: Sequence[jax.Array],
  schemes: Sequence[Scheme | None],
  products: jax.Array,
  sizes: jax.Array,
) -> jax.Array:
  """The scales of inputs by which `kernels`, times them, are rounded best (section 3.2, eq. 4, 5).

  Args:
    kernels: `[in, out]` each, all of one input.
    schemes: of each; None is not rounded and counts for nothing.
    products: `[in, in]`, the sum of `x^T x`.
    sizes: `[in]`, the mean of `|x|`.

  Returns:
    float32 `[in]`, positive, of geometric mean about 1: 1 everywhere where nothing is better.
  """
  pairs = [(k, s) for k, s in zip(kernels, schemes, strict=True) if s is not None]
  kernels, schemes = tuple(k for k, _ in pairs), tuple(s for _, s in pairs)
  return _search(kernels, products, sizes, schemes)


@partial(jax.jit, static_argnames="schemes")
def _search(kernels, products, sizes, schemes):
  def of_ratio(ratio):
    scales = jnp.maximum(sizes**ratio, 1e-4)
    scales = scales / jnp.sqrt(jnp.max(scales) * jnp.min(scales))
    loss = jnp.float32(0)
    for kernel, scheme in zip(kernels, schemes, strict=True):
      wide = kernel.astype(jnp.float32)
      rounded = quantize(wide * scales[:, None], scheme).astype(jnp.float32) / scales[:, None]
      loss += error(rounded - wide, products)
    return loss, scales

  losses, scales = jax.lax.map(of_ratio, jnp.arange(_RATIOS) / _RATIOS)
  return scales[jnp.argmin(losses)]


def error(change: jax.Array, products: jax.Array) -> jax.Array:
  """`tr(d^T H d)`: what a change `[in, out]` of a kernel makes of its outputs, squared."""
  return jnp.sum(change * matmul(products.astype(jnp.float32), change, (1, 0)))


@partial(jax.jit, static_argnames="scheme")
def clipped(kernel: jax.Array, products: jax.Array, scheme: Scheme) -> QArray:
  """`kernel` rounded, each group's range shrunk as far as its part of the output likes it best.

  Ranges are tried from the whole to 0.55 of it.

  Args:
    kernel: `[in, out]`.
    products: `[in, in]`, the sum of `x^T x`.
    scheme: of integers.

  Raises:
    ValueError: another scheme.
  """
  if scheme.kind not in INTEGERS or scheme.scales == "double" or scheme.group < 0:
    raise ValueError(f"AWQ rounds to integers with plain scales, not to {scheme}")
  kind, values = str(kernel.dtype), kernel.astype(jnp.float32)
  size = scheme.group or values.shape[0]
  groups = split(values, size, -2)  # [G, size, out]
  index = jnp.arange(groups.shape[0])
  own = products.reshape(len(index), size, len(index), size)[index, :, index, :]  # [G, size, size]
  low, high = jnp.min(groups, axis=1), jnp.max(groups, axis=1)

  def of_shrink(share):
    scale, zero = between(low * share, high * share, scheme)
    change = encode(values, scale, zero, scheme).astype(jnp.float32) - values
    change = split(change, size, -2)
    return jnp.sum(change * matmul(own, change, (2, 1), 1), axis=1)  # [G, out]

  shares = 1 - jnp.arange(_SHRINKS) / 20
  losses = jax.lax.map(of_shrink, shares)
  share = shares[jnp.argmin(losses, axis=0)]
  scale, zero = between(low * share, high * share, scheme)
  return encode(values, scale, zero, scheme, kind=kind)
