"""One transformer layer."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
from flax import struct

from research.core.sharding import constrain, platform
from research.nn import remat as remat_lib
from research.nn.attention import Attention
from research.nn.mlp import MLP
from research.nn.moe import ROUTING, MoE
from research.nn.norm import Norm
from research.nn.tap import OBSERVERS, tap


@struct.dataclass
class Context:
  """What the layers of a forward pass, or those of one kind, share.

  rotation: tables of `positions.rotation`, or None.
  mask: bool `[B, S, T]`.
  start: the cache's first slot to write, or None without a cache.
  bias: `[1 or B, H, S, T]`, added to scores, or None.
  source: `[B, T, D]`, what keys and values are of, by default the layer's own input.
  cross: the context of cross-attention, in models that have it. There a start of None means that
    the cache has the source's keys and values already.
  segments, window: what the mask is made of, where that is all: int32 `[B, S]`, and tokens that a
    query sees, 0 for no limit.
  causal, elementwise: how attention reads keys, see `Attention`.
  """

  rotation: Any
  mask: jax.Array
  start: Any = None
  bias: Any = None
  source: Any = None
  cross: Any = None
  segments: Any = None
  window: int = struct.field(pytree_node=False, default=0)
  causal: bool = struct.field(pytree_node=False, default=False)
  elementwise: bool = struct.field(pytree_node=False, default=False)


class Block(nn.Module):
  """One layer: `x += norm(attention(norm(x))); x += norm(mlp(norm(x)))`.

  The inner norms are there if `pre_norm`, the outer ones if `post_norm`; if `sum_norm`, `x` goes
  through one after each sum. With cross-attention, a sub-layer between the two is
  `x += norm(cross_attention(norm(x)))`.

  config: see `research.models.config.StackConfig`, whose fields it reads.
  attention: see `research.nn.attention.Attention`.
  """

  config: Any
  attention: str = "auto"

  @nn.compact
  def __call__(self, x: jax.Array, context: Any, cache: Any = None, kind: Any = None):
    """`x [B, S, D]` -> `[B, S, D]` and the layer's `Slots`, None without a cache.

    With cross-attention the cache is a pair of those: of the tokens so far and of the source, None
    for the latter if this call has only read them.

    Args:
      context: a `Context`; if layers differ, a tuple of them, of which the layer takes the
        `kind`-th.
      kind: int32 scalar, or None.
    """
    c = self.config
    if kind is not None:
      context = jax.tree.map(partial(jax.lax.select_n, kind), *context)
    mlp: MoE | MLP
    if c.num_experts:
      mlp = MoE(
        c.num_experts,
        c.experts_per_token,
        c.mlp_size,
        c.activation,
        c.normalize_experts,
        name="mlp",
      )
    else:
      mlp = MLP(c.mlp_size, c.activation, c.gated_mlp, c.mlp_bias, name="mlp")

    def norm(wanted, name, x):
      return Norm(c.norm, c.norm_eps, name=name)(x) if wanted else x

    def attend(name, x, context, cache):
      attention = Attention(
        c.num_heads,
        c.num_kv_heads,
        c.head_size,
        c.qkv_bias,
        c.out_bias,
        c.qk_norm,
        c.norm,
        c.norm_eps,
        c.attention_scale,
        c.attention_softcap,
        self.attention,
        name=name,
      )
      normed = norm(c.pre_norm, f"{name}_norm", x)
      out, cache = attention(
        normed,
        context.rotation,
        context.mask,
        None if cache is None else (cache, context.start),
        bias=context.bias,
        source=context.source,
        segments=context.segments,
        window=context.window,
        causal=context.causal,
        elementwise=context.elementwise,
      )
      out = tap(self, f"{name}_out", out, x=normed, stream=x)
      x = _spread(x + norm(c.post_norm, f"{name}_post_norm", out))
      return norm(c.sum_norm, f"{name}_sum_norm", x), cache

    x = _spread(x)
    if context.cross is None:
      x, cache = attend("attention", x, context, cache)
    else:
      own, other = (None, None) if cache is None else cache
      x, own = attend("attention", x, context, own)
      x, other = attend("cross_attention", x, context.cross, other)
      cache = None if cache is None else (own, other)

    normed = norm(c.pre_norm, "mlp_norm", x)
    out = tap(self, "mlp_out", mlp(normed), x=normed, stream=x)
    x = _spread(x + norm(c.post_norm, "mlp_post_norm", out))
    return norm(c.sum_norm, "mlp_sum_norm", x), cache


def _spread(x):
  return constrain(x, "batch", "sequence", None)


def stack(
  config: Any, layers: int, *, remat: bool | str, unroll: int, attention: str = "auto"
) -> nn.Module:
  """All layers as one module: `(x, context, caches, kinds)` -> `x` and the caches.

  Parameters, adapters and caches are stacks, `[L, ...]`. kinds: int32 `[L]`, which of a tuple of
  contexts is each layer's; None if they share one.

  Args:
    config: of every `Block`.
    layers: L.
    remat: what of a layer the backward pass computes again, in place of keeping it: one of
      `research.nn.remat.CHOICES`.
    unroll: layers in one iteration of the compiled loop. 0 is all of them on a CPU, which runs
      straight-line code faster at the price of compilation, and 1 elsewhere.
    attention: see `Block`.
  """
  unroll = unroll or (layers if platform() == "cpu" else 1)
  # A loop keeps the two passes apart; in straight-line code the compiler would find what is
  # computed again, and compute it once.
  return nn.scan(
    remat_lib.checkpointed(nn.remat, Block, remat, prevent_cse=unroll >= layers),
    variable_axes={"params": 0, "adapters": 0, ROUTING: 0, OBSERVERS: 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=(nn.broadcast, 0, 0),
    length=layers,
    unroll=unroll,
  )(config, attention)
