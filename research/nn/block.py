"""One transformer layer."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
from flax import struct

from research.nn.attention import Attention
from research.nn.mlp import MLP
from research.nn.moe import ROUTING, MoE
from research.nn.norm import Norm
from research.nn.tap import tap


@struct.dataclass
class Context:
  """What the layers of a forward pass, or those of one kind, share.

  rotation: tables of `positions.rotation`, or None.
  mask: bool `[B, S, T]`.
  start: the cache's first slot to write, or None without a cache.
  causal, elementwise: how attention reads keys, see `Attention`.
  """

  rotation: Any
  mask: jax.Array
  start: Any = None
  causal: bool = struct.field(pytree_node=False, default=False)
  elementwise: bool = struct.field(pytree_node=False, default=False)


class Block(nn.Module):
  """One layer: `x += norm(attention(norm(x))); x += norm(mlp(norm(x)))`.

  The inner norms are there if `pre_norm`, the outer ones if `post_norm`; if `sum_norm`, `x` goes
  through one after each sum.

  config: see `research.models.config.StackConfig`, whose fields it reads.
  """

  config: Any

  @nn.compact
  def __call__(self, x: jax.Array, context: Any, cache: Any = None, kind: Any = None):
    """`x [B, S, D]` -> `[B, S, D]` and the layer's `(keys, values)`, None without a cache.

    Args:
      context: a `Context`; if layers differ, a tuple of them, of which the layer takes the
        `kind`-th.
      kind: int32 scalar, or None.
    """
    c = self.config
    if kind is not None:
      context = jax.tree.map(partial(jax.lax.select_n, kind), *context)
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
      name="attention",
    )
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

    normed = norm(c.pre_norm, "attention_norm", x)
    cache = None if cache is None else (*cache, context.start)
    out, cache = attention(
      normed,
      context.rotation,
      context.mask,
      cache,
      causal=context.causal,
      elementwise=context.elementwise,
    )
    out = tap(self, "attention_out", out, x=normed)
    x = x + norm(c.post_norm, "attention_post_norm", out)
    x = norm(c.sum_norm, "attention_sum_norm", x)

    normed = norm(c.pre_norm, "mlp_norm", x)
    out = tap(self, "mlp_out", mlp(normed), x=normed)
    x = x + norm(c.post_norm, "mlp_post_norm", out)
    return norm(c.sum_norm, "mlp_sum_norm", x), cache


def stack(config: Any, *, remat: bool, unroll: int) -> nn.Module:
  """All layers as one module: `(x, context, caches, kinds)` -> `x` and the caches.

  Parameters and adapters have a leading axis of layers. kinds: int32 `[L]`, which of a tuple of
  contexts is each layer's; None if they share one.

  Args:
    config: see `Block`; `num_layers` of it are stacked.
    remat: recompute each layer in the backward pass instead of keeping its activations.
    unroll: layers in one iteration of the compiled loop. 0 is all of them on a CPU, which runs
      straight-line code faster at the price of compilation, and 1 elsewhere.
  """
  block = nn.remat(Block, prevent_cse=False) if remat else Block
  return nn.scan(
    block,
    variable_axes={"params": 0, "adapters": 0, ROUTING: 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=(nn.broadcast, 0, 0),
    length=config.num_layers,
    unroll=unroll or (config.num_layers if jax.default_backend() == "cpu" else 1),
  )(config)
