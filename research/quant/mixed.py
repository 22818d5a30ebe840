"""Stacks of kernels whose layers are held each in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core.matrix import Matrix
from research.quant.qarray import QArray
from research.quant.scheme import Scheme


@struct.dataclass
class Mixed(Matrix):
  """Kernels `[L, ..., in, out]`, each layer's an array or a `QArray` of its own.

  All are of one shape, and stand for arrays of one type. No program multiplies a whole stack, and
  none slices it: layers run one after the other (`research.models.straight`).

  each: L of them, `[..., in, out]`.
  """

  each: tuple[Any, ...]

  @property
  def shape(self) -> tuple[int, ...]:
    """See `Matrix`."""
    return (len(self.each), *self.each[0].shape)

  @property
  def dtype(self) -> Any:
    """See `Matrix`."""
    return self.each[0].dtype

  @property
  def schemes(self) -> tuple[Scheme | None, ...]:
    """That of each layer; None of one that is an array."""
    return tuple(part.scheme if isinstance(part, QArray) else None for part in self.each)

  def astype(self, dtype: Any) -> jax.Array:
    """See `Matrix`."""
    return jnp.stack([part.astype(dtype) for part in self.each])


def is_mixed(node: Any) -> bool:
  """True for a stack whose layers differ, for use as `is_leaf`."""
  return isinstance(node, Mixed)


def layer(stacks: Any, number: int) -> Any:
  """What the layer of this number, from 0, has of a tree of stacks `[L, ...]`."""
  return jax.tree.map(
    lambda leaf: leaf.each[number] if is_mixed(leaf) else leaf[number], stacks, is_leaf=is_mixed
  )


def take(stacks: Any, layers: Sequence[int]) -> Any:
  """A tree of stacks with the layers of these numbers alone, in this order."""
  index = jnp.asarray(layers, jnp.int32)
  return jax.tree.map(
    lambda leaf: (
      Mixed(tuple(leaf.each[number] for number in layers))
      if is_mixed(leaf)
      else jnp.take(leaf, index, axis=0)
    ),
    stacks,
    is_leaf=is_mixed,
  )
