"""Random keys, each a function of the run's seed, a purpose and a step: none is ever stored."""

from __future__ import annotations

import zlib

import jax


def root(seed: int, purpose: str) -> jax.Array:
  """The key of `purpose` ("init", "step", ...) in a run with this seed.

  Keys of different purposes are independent, so that a new purpose leaves the numbers that the
  others draw as they were.
  """
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def at(key: jax.Array, step: jax.Array | int) -> jax.Array:
  """The key of a step; a resumed run draws what an uninterrupted one would have drawn."""
  return jax.random.fold_in(key, step)
