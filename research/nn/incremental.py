"""Attention of one query a row over a cache, for CPUs.

With one query there is nothing for a matrix product to share: its work is to read the cache
once. Products and sums over float32 do that at the speed of memory, where batched dots pay
for thousands of tiny calls, and they read no further than the cache is filled.

B batch, T slots, H heads, N key/value heads, G = H / N, K head size.
"""

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite: a row that sees nothing becomes a mean, not a NaN
CHUNK = 64


def attend_one(
  q: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, used: jax.Array
) -> jax.Array:
  """As `attention.attend` for one query, by chunks of slots (Milakov & Gimelshein 2018).

  Args:
    q: `[B, 1, H, K]`.
    keys, values: `[B, N, T, K]`, best float32; read whole unless CHUNK divides T.
    mask: bool `[B, 1, T]`, True where the query sees a slot.
    used: the number of slots filled; no row sees a later one.

  Returns:
    `[B, 1, H, K]` in the type of `q`.
  """
  batch, kv_heads, slots, size = keys.shape
  chunk = CHUNK if slots % CHUNK == 0 else slots
  scaled = q.astype(jnp.float32).reshape(batch, kv_heads, -1, size) * size**-0.5  # [B, N, G, K]

  def read(i, state):
    best, total, out = state
    k = jax.lax.dynamic_slice_in_dim(keys, i * chunk, chunk, axis=2).astype(jnp.float32)
    v = jax.lax.dynamic_slice_in_dim(values, i * chunk, chunk, axis=2).astype(jnp.float32)
    seen = jax.lax.dynamic_slice_in_dim(mask[:, 0], i * chunk, chunk, axis=1)[:, None, None]
    scores = jnp.sum(scaled[:, :, :, None] * k[:, :, None], axis=-1)  # [B, N, G, chunk]
    scores = jnp.where(seen, scores, MASKED)
    highest = jnp.maximum(best, jnp.max(scores, axis=-1))
    weights = jnp.exp(scores - highest[..., None])
    fade = jnp.exp(best - highest)
    total = total * fade + jnp.sum(weights, axis=-1)
    out = out * fade[..., None] + jnp.sum(weights[..., None] * v[:, :, None], axis=3)
    return highest, total, out

  heads = scaled.shape[:3]
  empty = jnp.full(heads, MASKED), jnp.zeros(heads), jnp.zeros((*heads, size))
  _, total, out = jax.lax.fori_loop(0, (used + chunk - 1) // chunk, read, empty)
  return (out / total[..., None]).reshape(q.shape).astype(q.dtype)
