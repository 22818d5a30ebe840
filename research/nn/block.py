"""One transformer layer."""

from typing import Any

import flax.linen as nn
import jax
from flax import struct

from research.nn.attention import Attention
from research.nn.mlp import MLP
from research.nn.norm import Norm
from research.nn.tap import tap


@struct.dataclass
class Context:
  """What every layer of a forward pass shares.

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
  """Pre-norm layer: `x += attention(norm(x)); x += mlp(norm(x))`.

  config: see `research.models.config.DecoderConfig`, whose fields it reads.
  """

  config: Any

  @nn.compact
  def __call__(self, x: jax.Array, context: Context, cache: Any = None):
    """`x [B, S, D]` -> `[B, S, D]` and the layer's `(keys, values)`, None without a cache."""
    c = self.config
    attention = Attention(
      c.num_heads, c.num_kv_heads, c.head_size, c.qkv_bias, c.out_bias, name="attention"
    )
    mlp = MLP(c.mlp_size, c.activation, c.gated_mlp, c.mlp_bias, name="mlp")

    normed = Norm(c.norm, c.norm_eps, name="attention_norm")(x)
    cache = None if cache is None else (*cache, context.start)
    out, cache = attention(
      normed,
      context.rotation,
      context.mask,
      cache,
      causal=context.causal,
      elementwise=context.elementwise,
    )
    x = x + tap(self, "attention_out", out, x=normed)

    normed = Norm(c.norm, c.norm_eps, name="mlp_norm")(x)
    x = x + tap(self, "mlp_out", mlp(normed), x=normed)
    return x, cache
