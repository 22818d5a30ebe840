"""Which key each query may see, as a boolean array: True is visible.

B batch, S queries, T keys.
"""

import jax
import jax.numpy as jnp


def causal(segments: jax.Array, known: jax.Array | None = None) -> jax.Array:
  """Earlier tokens of the same document: `segments [B, S]` -> `[B, S, S]`.

  Padding (segment 0) sees earlier padding, so that no row is empty. Keys that are `known`, bool
  `[B, S]`, are seen by all of their document.
  """
  index = jnp.arange(segments.shape[1])
  together = same(segments, segments)
  earlier = index[:, None] >= index[None, :]
  return together & (earlier if known is None else earlier | known[:, None, :])


def same(queries: jax.Array, keys: jax.Array) -> jax.Array:
  """All tokens of the same document: segments `[B, S]`, `[B, T]` -> `[B, S, T]`.

  Padding sees padding.
  """
  return queries[:, :, None] == keys[:, None, :]


def cached(query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
  """Slots that are filled and not later: `[B, S]`, `[B, T]` -> `[B, S, T]`.

  An empty or padding slot has position -1.
  """
  keys = key_positions[:, None, :]
  return (keys >= 0) & (keys <= query_positions[:, :, None])


def within(
  mask: jax.Array, query_positions: jax.Array, key_positions: jax.Array, window: int
) -> jax.Array:
  """What of `mask [B, S, T]` is in each query's `window`: itself and `window - 1` before it.

  window: 0 is no limit. query_positions: `[B, S]`. key_positions: `[B, T]`.
  """
  if not window:
    return mask
  return mask & (query_positions[:, :, None] - key_positions[:, None, :] < window)
