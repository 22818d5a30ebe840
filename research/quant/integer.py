"""Products of integers: `int8 x int8 -> int32`, as AQT has them.

What is rounded is rounded a row at a time, by its largest number; a product's row and column then
have one scale each, which multiply the integers (Dettmers et al. 2022, arXiv:2208.07339, sec. 2).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MOST = 127


def rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`x [..., n]` as int8, each row's numbers half to even, and float32 scales `[..., 1]`."""
  wide = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(wide), axis=-1, keepdims=True) * (1 / MOST)
  units = wide * jnp.where(scale == 0, 0, 1 / scale)
  return jnp.clip(jnp.round(units), -MOST, MOST).astype(jnp.int8), scale


def clipped(x: jax.Array, scale: jax.Array) -> jax.Array:
  """`x` as int8 by a scale that is given, half to even; what that does not cover is clipped."""
  units = x.astype(jnp.float32) * jnp.where(scale == 0, 0, 1 / scale)
  return jnp.clip(jnp.round(units), -MOST, MOST).astype(jnp.int8)


def apart(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`x [..., n]` in two: the `count` columns with its largest numbers, and the rest.

  Returns:
    `x` with zeros in those columns; they, `[..., count]`; and which they are, `[count]`.
  """
  sizes = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=tuple(range(x.ndim - 1)))
  _, columns = jax.lax.top_k(sizes, count)
  # A comparison is fused with what reads the rest, and a scatter is not.
  chosen = jnp.any(columns[:, None] == jnp.arange(x.shape[-1]), axis=0)
  return jnp.where(chosen, jnp.zeros((), x.dtype), x), jnp.take(x, columns, axis=-1), columns


def rows_at_random(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """As `rows`, but up or down by chance, so that the mean over many numbers stays.

  The chance is a hash of the number's bits and its place: a generator's would cost more than the
  product that is saved.
  """
  wide = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(wide), axis=-1, keepdims=True) * (1 / MOST)
  units = wide * jnp.where(scale == 0, 0, 1 / scale)
  place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, x.ndim - 1)
  bits = jax.lax.bitcast_convert_type(wide, jnp.uint32) ^ (place * jnp.uint32(0x9E3779B9))
  bits = (bits ^ (bits >> 15)) * jnp.uint32(0x2C1B3C6D)
  bits = (bits ^ (bits >> 12)) * jnp.uint32(0x297A2D39)
  chance = (bits >> 8).astype(jnp.float32) * (1 / 2**24)
  return jnp.clip(jnp.floor(units + chance), -MOST, MOST).astype(jnp.int8), scale


def matmul(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
  """int8 by int8 -> float32: the exact sums, rounded once; axes as of `core.products.matmul`."""
  axes = (contract[:1], contract[1:])
  total = jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.int32)
  return total.astype(jnp.float32)
