"""A batch in pieces, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from research.core import rng as rng_lib

# (trainable, frozen, batch, rng, step) -> (sums, gradients of the sum of losses)
Gradients = Callable[[Any, Any, Any, Any, Any], tuple[Mapping[str, Any], Any]]


def summed(
  gradients: Gradients, trainable: Any, frozen: Any, slices: Any, rng: Any, step: Any
) -> Any:
  """The sum of what `gradients` gives for each of `slices`, arrays `[A, ...]`.

  Slice `i` draws its random numbers from `rng` at `i`.
  """

  def add(total: Any, slice_and_index: Any) -> tuple[Any, None]:
    rows, index = slice_and_index
    found = gradients(trainable, frozen, rows, rng_lib.at(rng, index), step)
    return jax.tree.map(jnp.add, total, found), None

  count = len(jax.tree.leaves(slices)[0])
  first = jax.tree.map(lambda rows: rows[0], slices)
  shapes = jax.eval_shape(gradients, trainable, frozen, first, rng, step)
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  found, _ = jax.lax.scan(add, zeros, (slices, jnp.arange(count, dtype=jnp.int32)))
  return found


def cut(rows: jax.Array, count: int, unit: int = 1) -> jax.Array:
  """`[B, ...]` -> `[A, B/A, ...]`; of units of so many rows, slice i takes i, i + A, ...

  Strided, so that every slice holds an equal share of each device's rows.

  Raises:
    ValueError: the rows do not divide.
  """
  if rows.shape[0] % (count * unit):
    what = f"units of {unit} rows" if unit > 1 else "rows"
    raise ValueError(f"{rows.shape[0] / unit:g} {what} cannot be cut into {count} slices")
  units = rows.reshape(-1, count, unit, *rows.shape[1:]).swapaxes(0, 1)
  return units.reshape(count, -1, *rows.shape[1:])
