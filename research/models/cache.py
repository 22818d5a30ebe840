"""What a decoder keeps of the tokens so far.

B batch, T slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.nn.incremental import Slots
from research.quant.cache import CacheScheme, FewBits


@struct.dataclass
class Cache:
  """Keys and values of the tokens so far.

  layers: `Slots`, or `FewBits`, of all layers, or a tuple of those of each.
  positions: int32 `[B, T]`: the position of the token in each slot, -1 where none is.
  used: the number of slots written, in all rows or in each, `[B]`; the next call writes from there.
  """

  layers: Any
  positions: jax.Array
  used: jax.Array

  def expand(self, copies: int, slots: int) -> Cache:
    """Each row `copies` times in a row, with room for `slots` tokens."""

    def both(kept: Slots) -> Slots:
      rows = kept.row_axis
      return Slots(
        _grown(kept.keys, copies, slots, rows, rows + 3),
        _grown(kept.values, copies, slots, rows, rows + 2),
      )

    positions = _grown(self.positions, copies, slots, 0, 1, -1)
    return dataclasses.replace(self, layers=self._each(both), positions=positions)

  def compress(self, scheme: CacheScheme, copies: int, slots: int) -> Cache:
    """As `expand`, with all but the last tokens in few bits; from then on a call has one token.

    All slots are written, as those of a prompt are. There may come a few more slots than asked for.
    """
    slots, real = scheme.slots(slots), self.positions >= 0

    def both(kept: Slots) -> FewBits:
      few = FewBits.of(kept.keys, kept.values, real, scheme, slots)
      return jax.tree.map(lambda leaf: jnp.repeat(leaf, copies, axis=kept.row_axis), few)

    positions = _grown(self.positions, copies, slots, 0, 1, -1)
    return dataclasses.replace(self, layers=self._each(both), positions=positions)

  def take(self, rows: jax.Array) -> Cache:
    """The keys and values of `rows [B]`, of which each has the positions of the row it replaces."""

    def all_of(kept: Slots | FewBits) -> Slots | FewBits:
      return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=kept.row_axis), kept)

    return dataclasses.replace(self, layers=self._each(all_of))

  def take_last(self, rows: jax.Array) -> Cache:
    """As `take`, of the slot written last alone: the others are the same in both rows."""

    def put(kept, row_axis, axis):
      last = jax.lax.dynamic_slice_in_dim(kept, self.used - 1, 1, axis=axis)
      last = jnp.take(last, rows, axis=row_axis)
      return jax.lax.dynamic_update_slice_in_dim(kept, last, self.used - 1, axis=axis)

    def both(kept: Slots) -> Slots:
      at = kept.row_axis
      return Slots(put(kept.keys, at, at + 3), put(kept.values, at, at + 2))

    return dataclasses.replace(self, layers=self._each(both))

  def insert(self, other: Cache, rows: jax.Array) -> Cache:
    """With the rows of `other` in place of `rows [n]`, their last slot just before `used`.

    Slots go round: before the first comes the last. What of `other` does not fit, its first slots,
    is left out, and so are rows with a number beyond the last.
    """
    slots = self.positions.shape[1]

    def put(kept, new, row_axis, axis):
      have = new.shape[axis]
      new = jax.lax.slice_in_dim(new, max(0, have - slots), have, axis=axis)
      padding = [(0, 0)] * new.ndim
      padding[axis] = (slots - new.shape[axis], 0)
      new = jnp.pad(new, padding, constant_values=-1 if new.ndim == 2 else 0)
      new = jnp.roll(new, self.used, axis=axis).astype(kept.dtype)
      return kept.at[(slice(None),) * row_axis + (rows,)].set(new, mode="drop")

    def both(kept: Slots, new: Slots) -> Slots:
      at = kept.row_axis
      return Slots(put(kept.keys, new.keys, at, at + 3), put(kept.values, new.values, at, at + 2))

    layers = self._each(both, other.layers)
    return Cache(layers, put(self.positions, other.positions, 0, 1), self.used)

  def _each(self, function: Callable[..., Any], *others: Any) -> Any:
    """`function` of what all layers have together, or of what each of them has."""
    return jax.tree.map(
      function, self.layers, *others, is_leaf=lambda node: isinstance(node, (Slots, FewBits))
    )


def _grown(array, copies, slots, rows, axis, fill=0):
  padding = [(0, 0)] * array.ndim
  padding[axis] = (0, slots - array.shape[axis])
  return jnp.pad(jnp.repeat(array, copies, axis=rows), padding, constant_values=fill)
