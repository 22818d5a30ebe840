"""Grouped-query scaled dot-product attention (Vaswani et al. 2017; Ainslie et al. 2023).

B batch, S queries, T keys, H heads, N key/value heads, G = H / N, K head size, D model.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core import sharding
from research.core.products import matmul, outer
from research.nn import cudnn, remat, splash
from research.nn.incremental import MASKED, attend_one
from research.nn.linear import Linear
from research.nn.norm import Norm
from research.nn.positions import rotate
from research.nn.tap import tap

IMPLEMENTATIONS = ("auto", "xla", "splash", "cudnn")
_OF_PLATFORM = {"tpu": "splash", "gpu": "cudnn"}
MIN_PIECE, MAX_PIECES = 128, 4  # queries in a piece of causal attention, pieces of a row


def require(implementation: str) -> None:
  """Raises ValueError unless it is one of `IMPLEMENTATIONS`."""
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f"attention {implementation!r} is none of {', '.join(IMPLEMENTATIONS)}")


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array,
  *,
  bias: jax.Array | None = None,
  causal: bool = False,
  scale: float | None = None,
  softcap: float | None = None,
  by_cudnn: bool = False,
) -> jax.Array:
  """`softmax(q k^T * scale + bias) v`, each head of a group with the group's keys and values.

  Args:
    q: `[B, N, G, S, K]`.
    k, v: `[B, N, T, K]`, of the type of `q`.
    mask: bool `[B, S, T]`, True where a query sees a key.
    bias: float32 `[1 or B, H, S, T]`, what is added to scaled and capped scores.
    causal: promises that query `i` sees no key after `T - S + i`. Rows are then worked on in
      pieces, each with the keys that it can see: up to 3/8 of the work is saved.
    scale: by default `1 / sqrt(K)`.
    softcap: scores `x` become `softcap * tanh(x / softcap)` (Gemma 2, arXiv:2408.00118).
    by_cudnn: by `nn.cudnn`, which has no obstacle to these arguments.

  Returns:
    `[B, N, G, S, K]` in the type of `q`; softmax in float32.
  """
  if bias is not None:
    bias = bias.reshape(bias.shape[0], *q.shape[1:3], *mask.shape[1:])
  scale = scale or q.shape[-1] ** -0.5
  # Several devices work on rows, heads and queries of their own: keys come to queries.
  split = sharding.parts("sequence") > 1
  causal = causal and not split
  local: Any = partial(_pieced, causal=causal, scale=scale, softcap=softcap)
  if by_cudnn:
    local = partial(_fused, causal=causal, scale=scale)
  if not sharding.is_spread():
    return local(q, k, v, mask, bias)
  own = sharding.spec(q, "batch", "heads", None, "sequence", None)
  seen = sharding.spec(k, "batch", "heads", None, None)
  visible = sharding.spec(mask, "batch", "sequence", None)
  added = bias if bias is None else sharding.spec(bias, "batch", "heads", None, "sequence", None)
  return jax.shard_map(
    local,
    in_specs=(own, seen, seen, visible, added),
    out_specs=own,
    axis_names=sharding.split_axes(),
    check_vma=False,  # the written-out derivative does not say what differs between devices
  )(q, k, v, mask, bias)


def _fused(q, k, v, mask, bias, *, causal, scale):
  """`_pieced` by the kernel, which takes no bias."""
  assert bias is None
  return cudnn.attend(q, k, v, mask, causal=causal, scale=scale)


def _pieced(q, k, v, mask, bias, *, causal, scale, softcap):
  """`attend` on one device; bias: `[1 or B, N, G, S, T]`."""
  queries, keys = mask.shape[1:]
  count = min(MAX_PIECES, max(1, queries // MIN_PIECE)) if causal else 1
  bounds = [i * queries // count for i in range(count + 1)]
  hidden = keys - queries if causal else 0  # keys before the first query's own
  pieces = tuple(
    (low, high, hidden + high if causal else keys)
    for low, high in zip(bounds, bounds[1:], strict=False)
  )
  return _attend(q, k, v, mask, bias, pieces, scale, softcap)


# The derivative is written out so that both directions multiply in the operands' type and keep
# one matrix of weights in that type; see core/dot.py for why it matters. The heads of a group share
# keys, so they stack along the queries of one matrix product. Weights stay as they are after
# `exp`: what is divided by their sum is the thinner output.
#
# bias: `[1 or B, N, G, S, T]` or None. Where nobody wants its gradient the compiler drops it.
@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _attend(q, k, v, mask, bias, pieces, scale, softcap):
  return _attend_forward(q, k, v, mask, bias, pieces, scale, softcap)[0]


def _attend_forward(q, k, v, mask, bias, pieces, scale, softcap):
  batch, kv_heads, group, _, size = q.shape
  outs, kept = [], []
  for low, high, seen in pieces:
    rows = (batch, kv_heads, group, high - low, seen)
    scores = matmul(_stack(q, low, high), _flat(k, seen), (2, 2), 1).reshape(rows)
    slope = None
    if softcap is not None:
      tanh = jnp.tanh(scores * (scale / softcap))
      slope = (1 - tanh * tanh).astype(q.dtype).reshape(batch * kv_heads, -1, seen)
      scores = tanh * (softcap / scale)
    if bias is not None:
      scores = scores + bias[..., low:high, :seen] * (1 / scale)
    scores = jnp.where(mask[:, None, None, low:high, :seen], scores, MASKED)
    scores = scores - jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores * scale).astype(q.dtype)
    weights = weights.reshape(batch * kv_heads, -1, seen)
    # A column of ones gives the sum of each row in the same product.
    ones = jnp.ones((batch * kv_heads, seen, 1), v.dtype)
    out = matmul(weights, jnp.concatenate([_flat(v, seen), ones], axis=-1), (2, 1), 1)
    inverse = remat.keep(1 / out[..., size:], remat.ATTENTION)
    out = remat.keep((out[..., :size] * inverse).astype(q.dtype), remat.ATTENTION)
    outs.append(out.reshape(*rows[:-1], size))
    kept.append((weights, inverse, out, slope))
  empty = None if bias is None else bias[..., :0]  # its batch and type, and no numbers
  return jnp.concatenate(outs, axis=3), (q, k, v, kept, empty)


def _attend_backward(pieces, scale, softcap, residuals, dout):
  del softcap  # `slope` is what is left of it
  q, k, v, kept, bias = residuals
  wide = jnp.float32
  dqs, dk, dv = [], jnp.zeros(k.shape, wide), jnp.zeros(v.shape, wide)
  dbiases = []
  for (low, high, seen), (weights, inverse, out, slope) in zip(pieces, kept, strict=True):
    d = _stack(dout, low, high).astype(wide) * inverse
    delta = jnp.sum(d * out.astype(wide), axis=-1, keepdims=True)
    d = d.astype(q.dtype)
    dweights = matmul(d, _flat(v, seen), (2, 2), 1) - delta
    dscores = weights.astype(wide) * dweights
    if bias is not None:
      dbias = dscores.reshape(*q.shape[:3], high - low, seen)
      dbias = jnp.sum(dbias, axis=0, keepdims=True) if bias.shape[0] == 1 else dbias
      dbiases.append(jnp.pad(dbias, [(0, 0)] * 4 + [(0, k.shape[2] - seen)]))
    if slope is not None:
      dscores = dscores * slope.astype(wide)
    dscores = dscores.astype(q.dtype)
    dq = matmul(dscores, _flat(k, seen), (2, 1), 1) * scale
    dqs.append(dq.astype(q.dtype).reshape(q[..., low:high, :].shape))
    dk += _spread(outer(dscores, _stack(q, low, high), 1) * scale, k.shape)
    dv += _spread(outer(weights, d, 1), v.shape)
  return (
    jnp.concatenate(dqs, axis=3),
    dk.astype(k.dtype),
    dv.astype(v.dtype),
    None,
    None if bias is None else jnp.concatenate(dbiases, axis=3).astype(bias.dtype),
  )


_attend.defvjp(_attend_forward, _attend_backward)


def _stack(x, low, high):
  """Rows `low` to `high` of every head of a group: `[B, N, G, S, K]` -> `[B*N, G*s, K]`."""
  batch, kv_heads, group, _, size = x.shape
  return x[..., low:high, :].reshape(batch * kv_heads, group * (high - low), size)


def _flat(x, seen):
  """The first `seen` keys: `[B, N, T, K]` -> `[B*N, t, K]`."""
  return x[:, :, :seen].reshape(-1, seen, x.shape[-1])


def _spread(x, shape):
  """`[B*N, t, K]` -> `[B, N, T, K]`, zero at keys that were not seen."""
  x = x.reshape(*shape[:2], -1, shape[-1])
  return jnp.pad(x, [(0, 0), (0, 0), (0, shape[2] - x.shape[2]), (0, 0)])


class Attention(nn.Module):
  """Attention with projections, over the whole row or through a cache.

  qk_norm: RMSNorm of queries and keys before rotation: "head" by head, "projection" over all
    heads at once, or None. norm: its kind, norm_eps: its epsilon, see `Norm`.
  scale, softcap: see `attend`.
  implementation: one of `IMPLEMENTATIONS`, for whole rows without a cache. "xla" is `attend` as the
    compiler has it, "splash" and "cudnn" are the kernels of `nn.splash` and `nn.cudnn`, and "auto"
    is the first of those on a TPU and the second on a GPU, where they can.
  """

  num_heads: int
  num_kv_heads: int
  head_size: int
  qkv_bias: bool
  out_bias: bool
  qk_norm: str | None = None
  norm: str = "rms"
  norm_eps: float = 1e-6
  scale: float | None = None
  softcap: float | None = None
  implementation: str = "auto"

  @nn.compact
  def __call__(
    self,
    x,
    rotation,
    mask,
    cache=None,
    *,
    bias=None,
    source=None,
    segments=None,
    window=0,
    causal=False,
    elementwise=False,
  ):
    """`x [B, S, D]` -> `[B, S, D]`, and the cache with this call's keys and values if it has any.

    Args:
      rotation: the tables of `positions.rotation`, or None for no rotation.
      mask: bool `[B, S, T]`; T is S without a cache or source, else the length of that.
      cache: None, or a pair: `incremental.Slots` or `quant.FewBits`, and the first slot to write,
        of all rows or of each, `[B]`; where that is None the cache is read as it is, and not
        returned.
      bias: see `attend`.
      source: `[B, T, D]`, what keys and values are of (cross-attention), by default `x`.
      segments, window: what the mask is made of, where that is all.
      causal: see `attend`.
      elementwise: reads the cache by `incremental.attend_one`; needs one query and a cache in
        float32.
    """
    groups = self.num_heads // self.num_kv_heads

    def heads(name, count, x, norm=None):
      y = Linear(self.num_kv_heads * count * self.head_size, self.qkv_bias, name=name)(x)
      if norm and self.qk_norm == "projection":
        y = Norm(self.norm, self.norm_eps, name=norm)(y)
      y = y.reshape(*x.shape[:2], self.num_kv_heads, count, self.head_size)
      y = y.transpose(0, 2, 3, 1, 4)  # [B, N, count, S, K]
      if norm and self.qk_norm == "head":
        y = Norm(self.norm, self.norm_eps, name=norm)(y)
      return y

    q = heads("q_proj", groups, x, "q_norm")
    kept, start = (None, None) if cache is None else cache
    written = None
    if kept is None or start is not None:
      of = x if source is None else source
      k, v = heads("k_proj", 1, of, "k_norm"), heads("v_proj", 1, of)
      if rotation is not None:
        # The barrier keeps the copy above apart from the rotation, which runs slowly across it.
        q, k = jax.lax.optimization_barrier((q, k))
        q, k = rotate(q, *rotation), rotate(k, *rotation)
      k, v = k[:, :, 0], v[:, :, 0]
      if kept is not None:
        kept = written = kept.write(k, v, start)
    scale = self.scale or self.head_size**-0.5
    if kept is not None:
      keys, values = kept.read(start)
      k, v = keys.swapaxes(2, 3), values
      own = kept.bias(q, start, scale)
      bias = own if bias is None else bias if own is None else bias + own
    how: dict[str, Any] = {"scale": scale, "softcap": self.softcap}
    if elementwise and not self.has_variable("adapters", "kv"):
      out = attend_one(q, keys, values, mask, bias=bias, **how)
    else:
      seen = (k.astype(q.dtype), v.astype(q.dtype), mask, bias)
      k, v, mask, bias = tap(self, "kv", seen, queries=q, scale=scale)
      if self.has_variable("adapters", "kv"):
        segments = None
      kernel = self._kernel(q, k, segments, bias, whole=cache is None and q.shape[3] > 1)
      if kernel == "splash":
        out = splash.attend(q, k, v, segments, causal=causal, window=window, **how)
      else:
        out = attend(q, k, v, mask, bias=bias, causal=causal, by_cudnn=kernel == "cudnn", **how)
    out = out.transpose(0, 3, 1, 2, 4).reshape(*x.shape[:2], -1)
    return Linear(x.shape[-1], self.out_bias, name="o_proj")(out), written

  def _kernel(self, q, k, segments, bias, *, whole):
    """Which of `IMPLEMENTATIONS` does it, and no longer "auto"; the kernels are for whole rows."""
    how = self.implementation
    require(how)
    kernel = _OF_PLATFORM.get(sharding.platform(), "xla") if how == "auto" else how
    if kernel == "xla" or not whole:
      return "xla"
    if kernel == "splash":
      obstacle = splash.obstacle(q, k, segments, bias)
    else:
      obstacle = cudnn.obstacle(q, k, bias, self.softcap)
    if obstacle and how != "auto":
      raise ValueError(f"attention {how!r} cannot be: {obstacle}")
    return "xla" if obstacle else kernel
