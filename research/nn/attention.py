"""Grouped-query scaled dot-product attention (Vaswani et al. 2017; Ainslie et al. 2023).

B batch, S queries, T keys, H heads, N key/value heads, G = H / N, K head size.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.products import matmul, outer
from research.nn.incremental import MASKED, attend_one
from research.nn.linear import Linear
from research.nn.positions import rotate
from research.nn.tap import tap


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
  """`softmax(q k^T / sqrt(K)) v`, head `h` of q with head `h // G` of k and v.

  Args:
    q: `[B, S, H, K]`.
    k, v: `[B, T, N, K]`, of the type of `q`; N divides H.
    mask: bool `[B, S, T]`, True where a query sees a key.

  Returns:
    `[B, S, H, K]` in the type of `q`; softmax in float32.
  """
  batch, queries, heads, size = q.shape
  keys, kv_heads = k.shape[1:3]
  group = heads // kv_heads
  # The heads of a group share keys, so they stack along the queries of one matrix product.
  q = q.reshape(batch, queries, kv_heads, group, size).transpose(0, 2, 3, 1, 4)
  q = q.reshape(batch * kv_heads, group * queries, size)
  k = k.transpose(0, 2, 1, 3).reshape(batch * kv_heads, keys, size)
  v = v.transpose(0, 2, 1, 3).reshape(batch * kv_heads, keys, size)
  out = _attend(q, k, v, mask, (batch, kv_heads, group, queries))
  out = out.reshape(batch, kv_heads, group, queries, size).transpose(0, 3, 1, 2, 4)
  return out.reshape(batch, queries, heads, size)


# The derivative is written out so that both directions multiply in the operands' type and
# keep one probability matrix in that type; see dot.py for why it
# matters.
@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, mask, dims):
  return _attend_forward(q, k, v, mask, dims)[0]


def _attend_forward(q, k, v, mask, dims):
  batch, kv_heads, group, queries = dims
  scores = matmul(q, k, (2, 2), 1) * (q.shape[-1] ** -0.5)  # [B*N, G*S, T]
  split = scores.reshape(batch, kv_heads, group, queries, -1)
  split = jnp.where(mask[:, None, None], split, MASKED)
  weights = jnp.exp(split - jnp.max(split, axis=-1, keepdims=True))
  total = jnp.sum(weights, axis=-1, keepdims=True)
  p = (weights / total).astype(q.dtype).reshape(scores.shape)
  out = matmul(p, v, (2, 1), 1).astype(q.dtype)
  return out, (q, k, v, p, out)


def _attend_backward(dims, residuals, dout):
  del dims
  q, k, v, p, out = residuals
  dout = dout.astype(q.dtype)
  wide = jnp.float32
  delta = jnp.sum(dout.astype(wide) * out.astype(wide), axis=-1, keepdims=True)
  dp = matmul(dout, v, (2, 2), 1)
  ds = (p.astype(wide) * (dp - delta) * (q.shape[-1] ** -0.5)).astype(q.dtype)
  dq = matmul(ds, k, (2, 1), 1).astype(q.dtype)
  dk = outer(ds, q, 1).astype(k.dtype)
  dv = outer(p, dout, 1).astype(v.dtype)
  return dq, dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)


class Attention(nn.Module):
  """Self-attention with projections, over the whole row or through a cache."""

  num_heads: int
  num_kv_heads: int
  head_size: int
  qkv_bias: bool
  out_bias: bool

  @nn.compact
  def __call__(self, x, rotation, mask, cache=None, elementwise=False):
    """`x [B, S, D]` -> `[B, S, D]`, and the cache with this call's keys and values.

    Args:
      rotation: the tables of `positions.rotation`, or None for no rotation.
      mask: bool `[B, S, T]`; T is S without a cache, else the cache's length.
      cache: None or a `(keys, values, start)`: arrays `[B, N, T, K]` and the first slot
        to write.
      elementwise: reads the cache by `incremental.attend_one`; needs one query and a cache in
        float32.
    """
    batch, length, features = x.shape
    q = Linear(self.num_heads * self.head_size, self.qkv_bias, name="q_proj")(x)
    k = Linear(self.num_kv_heads * self.head_size, self.qkv_bias, name="k_proj")(x)
    v = Linear(self.num_kv_heads * self.head_size, self.qkv_bias, name="v_proj")(x)
    q = q.reshape(batch, length, self.num_heads, self.head_size)
    k = k.reshape(batch, length, self.num_kv_heads, self.head_size)
    v = v.reshape(batch, length, self.num_kv_heads, self.head_size)
    if rotation is not None:
      q, k = rotate(q, *rotation), rotate(k, *rotation)
    if cache is None:
      keys, values = k, v
    else:
      *filled, start = cache
      cache = tuple(
        jax.lax.dynamic_update_slice_in_dim(old, new.swapaxes(1, 2).astype(old.dtype), start, 2)
        for old, new in zip(filled, (k, v), strict=True)
      )
      keys, values = (slots.swapaxes(1, 2) for slots in cache)
    if elementwise and not self.has_variable("adapters", "kv"):
      out = attend_one(q, *cache, mask)
    else:
      sites = tap(self, "kv", (keys.astype(q.dtype), values.astype(q.dtype), mask))
      out = attend(q, *sites)
    out = out.reshape(batch, length, -1)
    return Linear(features, self.out_bias, name="o_proj")(out), cache
