"""Writing to a cache, and attention of one query a row over it, for CPUs.

With one query there is nothing for a matrix product to share: the work is to read the cache
once. Products and sums over float32 do that at the speed of memory, where batched dots pay for
thousands of tiny calls.

B batch, T slots, N key/value heads, G heads of a group, K head size.
"""

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite: a row that sees nothing becomes a mean, not a NaN


def write(kept: jax.Array, new: jax.Array, start: jax.Array | int, axis: int) -> jax.Array:
  """`kept [B, ...]` with `new` along `axis` from slot `start` on, of all rows or of each, `[B]`."""
  if not jnp.ndim(start):
    return jax.lax.dynamic_update_slice_in_dim(kept, new, start, axis=axis)

  def row(kept, new, start):
    return jax.lax.dynamic_update_slice_in_dim(kept, new, start, axis=axis - 1)

  return jax.vmap(row)(kept, new, start)


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
