"""A layer's cache, and attention of one query a row over it, for CPUs.

With one query there is nothing for a matrix product to share: the work is to read the cache
once. Products and sums over float32 do that at the speed of memory, where batched dots pay for
thousands of tiny calls.

B batch, S new tokens, T slots, N key/value heads, G heads of a group, K head size. What a cache has
may be a stack of all layers', `[L, ...]`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

MASKED = -1e30  # finite: a row that sees nothing becomes a mean, not a NaN


def write(kept: jax.Array, new: jax.Array, start: jax.Array | int, axis: int) -> jax.Array:
  """`kept [B, ...]` with `new` along `axis` from slot `start` on, of all rows or of each, `[B]`."""
  if not jnp.ndim(start):
    return jax.lax.dynamic_update_slice_in_dim(kept, new, start, axis=axis)

  def row(kept, new, start):
    return jax.lax.dynamic_update_slice_in_dim(kept, new, start, axis=axis - 1)

  return jax.vmap(row)(kept, new, start)


@struct.dataclass
class Slots:
  """Keys and values as they are; `quant.FewBits` is the other form that a cache may have.

  keys: `[B, N, K, T]`, after rotation. values: `[B, N, T, K]`.
  """

  keys: jax.Array
  values: jax.Array

  @classmethod
  def empty(cls, rows: tuple[int, ...], size: int, slots: int, dtype: Any) -> Slots:
    """Of `rows`, `([L,] B, N)`."""
    return cls(jnp.zeros((*rows, size, slots), dtype), jnp.zeros((*rows, slots, size), dtype))

  @property
  def dtype(self) -> Any:
    """The type in which `read` gives them."""
    return self.keys.dtype

  @property
  def row_axis(self) -> int:
    """The axis of B."""
    return self.keys.ndim - 4

  def write(self, k: jax.Array, v: jax.Array, start: jax.Array | int) -> Slots:
    """With `k` and `v`, `[B, N, S, K]`, in slots from `start` on, of all rows or of each `[B]`."""
    return Slots(
      write(self.keys, k.swapaxes(2, 3).astype(self.keys.dtype), start, axis=3),
      write(self.values, v.astype(self.values.dtype), start, axis=2),
    )

  def read(self, last: jax.Array | int | None) -> tuple[jax.Array, jax.Array]:
    """Keys `[B, N, K, T]` and values `[B, N, T, K]`, where `last` is the slot written last."""
    del last
    return self.keys, self.values

  def bias(self, q: jax.Array, last: jax.Array | int | None, scale: float) -> None:
    """What is to be added to scores: nothing, of keys as they are."""
    del q, last, scale


def attend_one(
  q: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  mask: jax.Array,
  *,
  bias: jax.Array | None = None,
  scale: float | None = None,
  softcap: float | None = None,
) -> jax.Array:
  """As `attention.attend` for one query.

  Args:
    q: `[B, N, G, 1, K]`.
    keys, values: float32 `[B, N, K, T]` and `[B, N, T, K]`, so that each sum below is one of
      vectors and not one within a vector.
    mask: bool `[B, 1, T]`, True where the query sees a slot.
    bias: `[1 or B, H, 1, T]`; bias, scale, softcap: as of `attention.attend`.

  Returns:
    `[B, N, G, 1, K]` in the type of `q`.
  """
  scaled = q.astype(jnp.float32).swapaxes(-1, -2) * (scale or q.shape[-1] ** -0.5)
  scores = jnp.sum(scaled * keys[:, :, None], axis=3)  # [B, N, G, T]
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  if bias is not None:
    scores = scores + bias.reshape(bias.shape[0], *scores.shape[1:])
  scores = jnp.where(mask[:, None], scores, MASKED)
  weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  total = jnp.sum(weights, axis=-1)
  out = jnp.sum(weights[..., None] * values[:, :, None], axis=3)  # [B, N, G, K]
  return (out / total[..., None]).reshape(q.shape).astype(q.dtype)
