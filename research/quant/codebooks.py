"""Grids that are tables: NF4 and FP4, and the 8-bit one that their scales are held in.

The numbers are those of bitsandbytes, whose bytes ours are.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Quantiles of a normal distribution, of which one is 0 (arXiv:2305.14314, appendix E).
_NF4 = (
  -1.0,
  -0.6961928009986877,
  -0.5250730514526367,
  -0.39491748809814453,
  -0.28444138169288635,
  -0.18477343022823334,
  -0.09105003625154495,
  0.0,
  0.07958029955625534,
  0.16093020141124725,
  0.24611230194568634,
  0.33791524171829224,
  0.44070982933044434,
  0.5626170039176941,
  0.7229568362236023,
  1.0,
)

# A sign, two bits of exponent and one of mantissa, divided by the largest (12).
_FP4_MAGNITUDES = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
_FP4 = tuple(sign * m / 12 for sign in (1, -1) for m in _FP4_MAGNITUDES)

CODEBOOKS: dict[str, tuple[float, ...]] = {"nf4": _NF4, "fp4": _FP4}


def values(name: str) -> np.ndarray:
  """The 16 numbers of a table, by code, float32."""
  return np.asarray(CODEBOOKS[name], np.float32)


def encode(name: str, x: jax.Array) -> jax.Array:
  """The codes of the nearest numbers, uint8; `x` is float32 within [-1, 1].

  Half way between two it is the lower one. Of FP4's two zeros the one with the sign is for what is
  above 0, as in bitsandbytes, whose order of the table that is.
  """
  table = values(name)
  order = np.argsort(table, kind="stable")
  middles = (table[order][1:] + table[order][:-1]) / 2
  place = sum((x > middle).astype(jnp.uint8) for middle in middles)
  return place if name == "nf4" else _select(place, order.astype(np.uint8))


def decode(name: str, codes: jax.Array) -> jax.Array:
  """The numbers of `codes`, float32."""
  return _select(codes, values(name))


def _select(codes, table):
  """`table[codes]` for 16 numbers, as a tree of selections: CPUs have no fast gather."""
  level = [jnp.asarray(value) for value in table]
  bit = 0
  while len(level) > 1:
    chosen = (codes >> bit) & 1 != 0
    level = [
      jnp.where(chosen, high, low) for low, high in zip(level[::2], level[1::2], strict=True)
    ]
    bit += 1
  return level[0]


@functools.cache
def dynamic() -> np.ndarray:
  """The 256 numbers of the dynamic 8-bit type (Dettmers 2015, arXiv:1511.04561), rising, float32.

  A sign, an exponent of ten by how many zeros lead, and a fraction by the bits that are left. Those
  of bitsandbytes differ in the last bit of float32, by the processor that it computes them on.
  """
  found = [0.0, 1.0]
  for exponent in range(7):
    edges = np.linspace(0.1, 1, 2**exponent + 1)
    means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6)
    found += [*means, *-means]
  return np.sort(np.asarray(found, np.float32))


def encode_dynamic(x: jax.Array) -> jax.Array:
  """The places of the nearest of `dynamic()`, uint8; half way it is the upper one."""
  table = dynamic()
  middles = jnp.asarray((table[1:] + table[:-1]) / 2)
  return jnp.searchsorted(middles, x, side="right").astype(jnp.uint8)


def decode_dynamic(codes: jax.Array) -> jax.Array:
  """The numbers of `codes`, float32."""
  return jnp.asarray(dynamic())[codes]
