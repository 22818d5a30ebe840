"""Small unsigned numbers packed into bytes, along one axis."""

import math

import jax
import jax.numpy as jnp


def pack(codes: jax.Array, bits: int, axis: int) -> jax.Array:
  """`codes` below `2^bits` -> uint8, `bits / 8` as many along `axis`.

  The first number is in the lowest bits; 3-bit numbers lie eight in three bytes, in one row of bits
  from the lowest of the first byte to the highest of the third.

  Args:
    codes: integers; their count along `axis` is a multiple of `unit(bits)`.
    bits: 2, 3, 4 or 8.
    axis: counted from the end, -1 or -2.
  """
  if bits == 8:
    return codes.astype(jnp.uint8)
  words = split(codes.astype(jnp.uint32), unit(bits), axis)
  word = sum(part << (bits * i) for i, part in enumerate(_parts(words, axis)))
  count = unit(bits) * bits // 8
  parts = [((word >> (8 * i)) & 0xFF).astype(jnp.uint8) for i in range(count)]
  return _join(parts, axis)


def unpack(packed: jax.Array, bits: int, axis: int) -> jax.Array:
  """The inverse of `pack` -> uint8."""
  if bits == 8:
    return packed
  count, word = unit(bits), packed
  if count * bits > 8:
    parts = _parts(split(packed.astype(jnp.uint32), count * bits // 8, axis), axis)
    word = sum(part << (8 * i) for i, part in enumerate(parts))
  # A shift for each place of a word, and no joining of parts, which CPUs do a number at a time.
  shifts = (jnp.arange(count, dtype=word.dtype) * bits).reshape(-1, *(1,) * (-1 - axis))
  codes = (jnp.expand_dims(word, axis) >> shifts) & (2**bits - 1)
  return merged(codes, axis).astype(jnp.uint8)


def unit(bits: int) -> int:
  """How many numbers fill whole bytes."""
  return math.lcm(bits, 8) // bits


def split(values: jax.Array, size: int, axis: int) -> jax.Array:
  """`[..., n, ...]` -> `[..., n / size, size, ...]`; the parts of a group lie along `axis`."""
  at = values.ndim + axis
  shape = values.shape
  return values.reshape(*shape[:at], shape[at] // size, size, *shape[at + 1 :])


def merged(values: jax.Array, axis: int) -> jax.Array:
  """The inverse of `split`."""
  at = values.ndim + axis
  shape = values.shape
  return values.reshape(*shape[: at - 1], shape[at - 1] * shape[at], *shape[at + 1 :])


def _parts(values, axis):
  return [jax.lax.index_in_dim(values, i, axis, keepdims=False) for i in range(values.shape[axis])]


def _join(parts, axis):
  # The new axis stands where `axis` is counted from in an array of one axis more.
  return merged(jnp.stack(parts, axis=axis), axis)
