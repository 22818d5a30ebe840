"""Keys and values of a cache in few bits (KIVI: Liu et al. 2024, arXiv:2402.02750).

Some channels of keys are far larger than others, and tokens of values differ. So a block of
successive tokens shares a scale in each channel of keys, and a block of channels in each token of
values; and the last tokens, on which most attention falls, stay as they are. So do the first ones,
whose keys are unlike all others (attention sinks: Xiao et al. 2023, arXiv:2309.17453).

What rounding adds to a score is noise, and the mean of `exp(score)` grows with it: tokens in few
bits would draw attention away from those that stay as they are. `FewBits.bias` takes that back.

B batch, N key/value heads, G heads of a group, S queries, K head size, T slots, M = T / group
blocks of tokens, R recent slots.
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
_GROUPS = {"int8": 32, "int4": 32, "int2": 16}
# Of what normal noise adds to the logarithm of the mean of `exp(score)`, half its variance, how
# much is taken back. Errors of a block are neither normal nor independent: for 2 bits 3/4 and 1
# were better than 1/2, and that than nothing (experiments/quantization).
_TAKEN_BACK = 0.75


@dataclasses.dataclass(frozen=True)
class CacheScheme:
  """How a cache is held.

  kind: "int8", "int4" or "int2"; each group covers its least to its largest number evenly.
  group: tokens that share a scale in a channel of keys; by default 16 of 2 bits, and else 32.
  channels: that share a scale in a token of values (all of a head's, where they are fewer or this
    does not divide them); by default as many.
  recent: how many last tokens at least stay as they are.
  sinks: how many first tokens do, at most a group; by default that.

  Raises:
    ValueError: there is no such scheme.
  """

  kind: str
  group: int = 0
  channels: int = 0
  recent: int = 96
  sinks: int = -1

  def __post_init__(self):
    if self.kind not in _BITS:
      known = ", ".join(_BITS)
      raise ValueError(f"a cache of {self.kind!r}{nearest(self.kind, _BITS)}: there are {known}")
    for name in ("group", "channels"):
      if getattr(self, name) == 0:
        object.__setattr__(self, name, _GROUPS[self.kind])
    if self.sinks == -1:
      object.__setattr__(self, "sinks", self.group)
    for name in ("group", "channels"):
      size = getattr(self, name)
      if size < 4 or size % 4:
        raise ValueError(f"{name} {size} is no multiple of 4, which fill whole bytes")
    if self.recent < 0:
      raise ValueError(f"recent is a number of tokens, not {self.recent}")
    if not 0 <= self.sinks <= self.group:
      raise ValueError(f"sinks is from 0 to the group, {self.group}, not {self.sinks}")

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

  def width(self, size: int) -> int:
    """How many channels of a head of `size` share a scale in a token of values."""
    return size if size % self.channels else self.channels


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

  keys: groups of `[B, N, K, M, group]`. values: of `[B, N, T, K / width, width]`.
  recent_keys: float `[B, N, K, R]`. recent_values: `[B, N, R, K]`.
  first_keys: float `[B, N, K, group]`. first_values: `[B, N, group, K]`. Of sinks, each at its
    slot's number modulo group.
  begin: int32 `[B]`: the slot of the first sink.
  """

  keys: Codes
  values: Codes
  recent_keys: jax.Array
  recent_values: jax.Array
  first_keys: jax.Array
  first_values: jax.Array
  begin: jax.Array
  scheme: CacheScheme = struct.field(pytree_node=False)

  @classmethod
  def of(
    cls, keys: jax.Array, values: jax.Array, real: jax.Array, scheme: CacheScheme, slots: int
  ) -> FewBits:
    """Of P slots that are all written.

    Args:
      keys: `[..., B, N, K, P]`. values: `[..., B, N, P, K]`.
      real: bool `[B, P]`, which of them are tokens. In codes the others, and sinks, become copies
        of the first token that is neither, so that they widen no scale of it.
      slots: T, a multiple of `scheme.window`.
    """
    have, window, group = keys.shape[-1], scheme.window, scheme.group
    begin = jnp.argmax(real, axis=1).astype(jnp.int32)  # [B]
    ring = begin[:, None] + (jnp.arange(group) - begin[:, None]) % group  # [B, group]: slots
    ring = jnp.minimum(ring, have - 1)
    plain = real & ~_sinks(begin, have, scheme)  # [B, P]
    spare = jnp.minimum(begin + scheme.sinks, have - 1)[:, None]
    across = keys.ndim - 1

    def recent(x, axis):
      x = jax.lax.slice_in_dim(x, max(0, have - window), have, axis=axis)
      if have < window:
        return _padded(x, axis, window)
      return jnp.roll(x, have % window, axis=axis)

    def coded(x, axis):
      mask = jnp.expand_dims(plain, (1, 2) if axis == across else (1, 3))
      return _padded(jnp.where(mask, x, _taken(x, spare, axis)), axis, slots)

    blocks = coded(keys, across)
    return cls(
      Codes.of(blocks.reshape(*keys.shape[:-1], -1, group), scheme.bits),
      Codes.of(_by_channels(coded(values, across - 1), scheme), scheme.bits),
      recent(keys, across),
      recent(values, across - 1),
      _taken(keys, ring, across),
      _taken(values, ring, across - 1),
      jnp.broadcast_to(begin, keys.shape[:-3]),
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
      # Padding and sinks become copies, as in `of`; if the last is one, all are.
      ahead = first + jnp.arange(group) < self.begin[:, None] + scheme.sinks
      block = jnp.where(ahead[:, None, None], block[..., -1:], block)
      rows = jnp.where(ahead[:, None, :, None], rows[:, :, -1:], rows)
      return (
        _put(keys, Codes.of(block[:, :, :, None], scheme.bits), first // group, 3),
        _put(values, Codes.of(_by_channels(rows, scheme), scheme.bits), first, 2),
      )

    due = (start % group == 0) & (start >= scheme.window)
    keys, values = jax.lax.cond(due, leave, lambda codes: codes, (self.keys, self.values))
    turned = k.swapaxes(2, 3).astype(self.recent_keys.dtype)
    v = v.astype(self.recent_values.dtype)
    is_sink = (start < self.begin + scheme.sinks)[:, None, None, None]

    def remember(kept, new, axis):
      old = jax.lax.dynamic_slice_in_dim(kept, start % group, 1, axis=axis)
      new = jnp.where(is_sink, new, old)
      return jax.lax.dynamic_update_slice_in_dim(kept, new, start % group, axis=axis)

    return FewBits(
      keys,
      values,
      jax.lax.dynamic_update_slice_in_dim(self.recent_keys, turned, at, axis=3),
      jax.lax.dynamic_update_slice_in_dim(self.recent_values, v, at, axis=2),
      remember(self.first_keys, turned, 3),
      remember(self.first_values, v, 2),
      self.begin,
      scheme,
    )

  def read(self, last: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Keys `[B, N, K, T]` and values `[B, N, T, K]`, float32, where slot `last` was written last.

    In slots after `last` there is anything finite.
    """
    keys, values = self.rounded()
    slots, scheme = keys.shape[-1], self.scheme
    # Rings are made as long as T by going round: so nothing is gathered, and a reader that
    # multiplies and sums does all in one pass.
    first = self.sinks(slots)
    fresh = jnp.arange(slots) >= scheme.kept(last)
    rings = (
      (first, self.first_keys, self.first_values, slots // scheme.group),
      (fresh[None], self.recent_keys, self.recent_values, slots // scheme.window),
    )
    for mask, own_keys, own_values, times in rings:
      own_keys, own_values = _around(own_keys, times, 3), _around(own_values, times, 2)
      keys = jnp.where(mask[:, None, None], own_keys.astype(jnp.float32), keys)
      values = jnp.where(mask[:, None, :, None], own_values.astype(jnp.float32), values)
    return keys, values

  def rounded(self) -> tuple[jax.Array, jax.Array]:
    """What codes say: keys `[B, N, K, T]` and values `[B, N, T, K]`, float32."""
    keys, values = self.keys.read(self.scheme.bits), self.values.read(self.scheme.bits)
    return keys.reshape(*keys.shape[:-2], -1), values.reshape(*values.shape[:-2], -1)

  def sinks(self, slots: int) -> jax.Array:
    """bool `[B, slots]`: which of the first slots are sinks', of one layer."""
    return _sinks(self.begin, slots, self.scheme)

  def bias(self, q: jax.Array, last: jax.Array | int, scale: float) -> jax.Array:
    """What is to be added to scores, float32 `[B, N * G, S, T]`; not positive, 0 of exact tokens.

    Three quarters of half the variance of what rounding adds to a score: of `q k * scale` with
    errors of `k` that are spread evenly over a step.

    Args:
      q: `[B, N, G, S, K]`.
      last: as of `read`.
    """
    found = self.rounded_bias(q, scale)
    slots = jnp.arange(found.shape[-1])
    coded = (slots < self.scheme.kept(last)) & ~self.sinks(len(slots))
    return jnp.where(coded[:, None, None], found, 0)

  def rounded_bias(self, q: jax.Array, scale: float) -> jax.Array:
    """As `bias`, as if all tokens were in few bits."""
    squares = jnp.square(q.astype(jnp.float32) * scale)
    steps = jnp.square(self.keys.step.astype(jnp.float32)) / 12  # [B, N, K, M]
    variance = jnp.sum(squares[..., None] * steps[:, :, None, None], axis=-2)  # [B, N, G, S, M]
    found = -0.5 * _TAKEN_BACK * jnp.repeat(variance, self.scheme.group, axis=-1)
    return found.reshape(found.shape[0], -1, *found.shape[3:])


def _sinks(begin, slots, scheme):
  """bool `[B, slots]`, where rows' tokens begin at `begin [B]`."""
  ahead = jnp.arange(slots) - begin[:, None]
  return (ahead >= 0) & (ahead < scheme.sinks)


def _taken(x, which, axis):
  """The slots `which [B, n]` of each row along `axis`, one of the last two of `x`."""
  shape = (1,) * (x.ndim - 4) + (which.shape[0], 1)
  shape += (1, which.shape[1]) if axis == x.ndim - 1 else (which.shape[1], 1)
  return jnp.take_along_axis(x, which.reshape(shape), axis=axis)


def _padded(x, axis, length):
  padding = [(0, 0)] * x.ndim
  padding[axis] = (0, length - x.shape[axis])
  return jnp.pad(x, padding)


def _by_channels(rows, scheme):
  """`[..., K]` -> `[..., K / width, width]`."""
  return rows.reshape(*rows.shape[:-1], -1, scheme.width(rows.shape[-1]))


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
