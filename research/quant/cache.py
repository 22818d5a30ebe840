"""Keys and values of a cache in few bits (KIVI: Liu et al. 2024, arXiv:2402.02750).

Some channels of keys are far larger than others, and tokens of values differ. So a block of
successive tokens shares a scale in each channel of keys, and a block of channels in each token of
values; and the last tokens, on which most attention falls, stay as they are.

B batch, N key/value heads, K head size, T slots, M = T / group blocks of tokens, R recent slots.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core.tree import nearest
from research.quant.packing import pack, unpack

_BITS = {"int8": 8, "int4": 4, "int2": 2}


@dataclasses.dataclass(frozen=True)
class CacheScheme:
  """How a cache is held.

  kind: "int8", "int4" or "int2"; each group covers its least to its largest number evenly.
  group: tokens that share a scale in a channel of keys, and channels that do in a token of values
    (all of a head's, where they are fewer or `group` does not divide them).
  recent: how many last tokens at least stay as they are.

  Raises:
    ValueError: there is no such scheme.
  """

  kind: str
  group: int = 32
  recent: int = 96

  def __post_init__(self):
    if self.kind not in _BITS:
      known = ", ".join(_BITS)
      raise ValueError(f"a cache of {self.kind!r}{nearest(self.kind, _BITS)}: there are {known}")
    if self.group < 4 or self.group % 4:
      raise ValueError(f"group {self.group} is no multiple of 4, which fill whole bytes")
    if self.recent < 0:
      raise ValueError(f"recent is a number of tokens, not {self.recent}")

  @property
  def bits(self) -> int:
    """Of a number, without its share of scales."""
    return _BITS[self.kind]

  @property
  def window(self) -> int:
    """R: slots of tokens as they are, of which those of one group may be in few bits as well."""
    return -(-self.recent // self.group) * self.group + self.group

  def slots(self, tokens: int) -> int:
    """T, a multiple of R, for `tokens`."""
    return -(-tokens // self.window) * self.window

  def kept(self, last: Any) -> Any:
    """How many first slots are in few bits alone, once `last` is written; none, if below 0."""
    return last // self.group * self.group + self.group - self.window

  def channels(self, size: int) -> int:
    """How many channels of a head of `size` share a scale in a token of values."""
    return size if size % self.group else self.group


@struct.dataclass
class Codes:
  """Numbers `[..., groups, size]` as `least + code * step`, which each group has its own of."""

  codes: jax.Array  # uint8 [..., groups, size * bits / 8]
  step: jax.Array  # float16 [..., groups]
  least: jax.Array  # float16 [..., groups]

  @classmethod
  def of(cls, x: jax.Array, bits: int) -> Codes:
    """Of `x [..., groups, size]`."""
    x = x.astype(jnp.float32)
    levels = 2**bits - 1
    # Codes are of the rounded scales, whose error is then that of rounding alone.
    step = ((jnp.max(x, axis=-1) - jnp.min(x, axis=-1)) / levels).astype(jnp.float16)
    least = jnp.min(x, axis=-1).astype(jnp.float16)
    wide, low = step.astype(jnp.float32)[..., None], least.astype(jnp.float32)[..., None]
    codes = jnp.round((x - low) / jnp.where(wide == 0, 1, wide))
    return cls(pack(jnp.clip(codes, 0, levels).astype(jnp.uint8), bits, -1), step, least)

  def read(self, bits: int) -> jax.Array:
    """float32 `[..., groups, size]`."""
    numbers = unpack(self.codes, bits, -1).astype(jnp.float32)
    return (
      numbers * self.step.astype(jnp.float32)[..., None] + self.least.astype(jnp.float32)[..., None]
    )


@struct.dataclass
class FewBits:
  """A layer's cache, or all layers' with a leading axis, in few bits.

  A slot's token is in the ring of recent ones, at its number modulo R, until the last block there
  is needed for new ones. Only then its codes are made.

  keys: groups of `[B, N, K, M, group]`. values: of `[B, N, T, K / channels, channels]`.
  recent_keys: float `[B, N, K, R]`. recent_values: `[B, N, R, K]`.
  """

  keys: Codes
  values: Codes
  recent_keys: jax.Array
  recent_values: jax.Array
  scheme: CacheScheme = struct.field(pytree_node=False)

  @classmethod
  def of(
    cls, keys: jax.Array, values: jax.Array, real: jax.Array, scheme: CacheScheme, slots: int
  ) -> FewBits:
    """Of P slots that are all written.

    Args:
      keys: `[..., B, N, K, P]`. values: `[..., B, N, P, K]`.
      real: bool `[B, P]`, which of them are tokens. The others become copies of the row's first
        token, so that they widen no scale of it where they are in front.
      slots: T, a multiple of `scheme.window`.
    """
    have, window, group = keys.shape[-1], scheme.window, scheme.group

    def recent(x, axis):
      x = jax.lax.slice_in_dim(x, max(0, have - window), have, axis=axis)
      if have < window:
        return _padded(x, axis, window)
      return jnp.roll(x, have % window, axis=axis)

    first = jnp.argmax(real, axis=1)  # [B]
    keys = jnp.where(real[:, None, None], keys, _slot(keys, first, keys.ndim - 1))
    blocks = _padded(keys, keys.ndim - 1, slots).reshape(*keys.shape[:-1], -1, group)
    rows = _padded(values, values.ndim - 2, slots)
    return cls(
      Codes.of(blocks, scheme.bits),
      Codes.of(_by_channels(rows, scheme), scheme.bits),
      recent(keys, keys.ndim - 1),
      recent(values, values.ndim - 2),
      scheme,
    )

  @property
  def dtype(self) -> Any:
    """The type in which `read` gives keys and values."""
    return jnp.dtype(jnp.float32)

  @property
  def row_axis(self) -> int:
    """The axis of B in all leaves."""
    return self.recent_keys.ndim - 4

  def write(self, k: jax.Array, v: jax.Array, start: jax.Array | int) -> FewBits:
    """With the token `k`, `v`, `[B, N, 1, K]`, in slot `start`, the first that is not written.

    Raises:
      ValueError: several tokens, or rows that write to different slots.
    """
    if k.shape[2] != 1 or jnp.ndim(start):
      raise ValueError("a cache in few bits takes a token at a time, in one slot of all rows")
    scheme, group = self.scheme, self.scheme.group
    at = start % scheme.window

    def leave(codes):
      """With the codes of the block whose place in the ring the new token's block takes."""
      keys, values = codes
      first = start - scheme.window
      block = jax.lax.dynamic_slice_in_dim(self.recent_keys, at, group, axis=3)
      rows = jax.lax.dynamic_slice_in_dim(self.recent_values, at, group, axis=2)
      return (
        _put(keys, Codes.of(block[:, :, :, None], scheme.bits), first // group, 3),
        _put(values, Codes.of(_by_channels(rows, scheme), scheme.bits), first, 2),
      )

    due = (start % group == 0) & (start >= scheme.window)
    keys, values = jax.lax.cond(due, leave, lambda codes: codes, (self.keys, self.values))
    recent_keys = jax.lax.dynamic_update_slice_in_dim(
      self.recent_keys, k.swapaxes(2, 3).astype(self.recent_keys.dtype), at, axis=3
    )
    recent_values = jax.lax.dynamic_update_slice_in_dim(
      self.recent_values, v.astype(self.recent_values.dtype), at, axis=2
    )
    return FewBits(keys, values, recent_keys, recent_values, scheme)

  def read(self, last: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Keys `[B, N, K, T]` and values `[B, N, T, K]`, float32, where slot `last` was written last.

    In slots after `last` there is anything finite.
    """
    keys, values = self.rounded()
    slots = keys.shape[-1]
    whole = slots // self.scheme.window
    # The ring is made as long as T by going round: so nothing is gathered, and a reader that
    # multiplies and sums does all in one pass.
    fresh = jnp.arange(slots) >= self.scheme.kept(last)
    recent_keys = _around(self.recent_keys, whole, 3).astype(jnp.float32)
    recent_values = _around(self.recent_values, whole, 2).astype(jnp.float32)
    return (
      jnp.where(fresh, recent_keys, keys),
      jnp.where(fresh[:, None], recent_values, values),
    )

  def rounded(self) -> tuple[jax.Array, jax.Array]:
    """What codes say: keys `[B, N, K, T]` and values `[B, N, T, K]`, float32."""
    keys, values = self.keys.read(self.scheme.bits), self.values.read(self.scheme.bits)
    return keys.reshape(*keys.shape[:-2], -1), values.reshape(*values.shape[:-2], -1)


def _slot(x, which, axis):
  """The `which [B]`-th slot of each row, with its axis; rows are along axis -4 of `x`."""
  return jnp.take_along_axis(x, which.reshape((1,) * (x.ndim - 4) + (-1, 1, 1, 1)), axis=axis)


def _padded(x, axis, length):
  padding = [(0, 0)] * x.ndim
  padding[axis] = (0, length - x.shape[axis])
  return jnp.pad(x, padding)


def _by_channels(rows, scheme):
  """`[..., K]` -> `[..., K / channels, channels]`."""
  return rows.reshape(*rows.shape[:-1], -1, scheme.channels(rows.shape[-1]))


def _put(codes, new, start, axis):
  return jax.tree.map(
    lambda kept, x: jax.lax.dynamic_update_slice_in_dim(kept, x, start, axis=axis), codes, new
  )


def _around(x, times, axis):
  """`x` `times` over along `axis`."""
  shape = x.shape
  wide = jnp.broadcast_to(
    jnp.expand_dims(x, axis), (*shape[:axis], times, shape[axis], *shape[axis + 1 :])
  )
  return wide.reshape(*shape[:axis], times * shape[axis], *shape[axis + 1 :])
