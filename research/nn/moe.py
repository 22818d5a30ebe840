"""Mixture-of-experts feed-forward (Shazeer et al. 2017, arXiv:1701.06538; Mixtral, 2401.04088).

Each token goes to the `top_k` experts that a router gives the most weight, and no token is ever
dropped: tokens are sorted by expert and multiplied in groups, at the cost of `top_k` experts a
token however many there are.

B batch, S sequence, D model, E experts, M = B * S * top_k rows.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.grouped import grouped
from research.core.matrix import is_matrix
from research.nn import remat
from research.nn.linear import Linear
from research.nn.mlp import gated
from research.nn.tap import tap

ROUTING = "routing"  # the collection into which layers tell their router's logits


class ExpertLinear(nn.Module):
  """A projection an expert: `[M, in]`, sorted by expert -> `[M, features]`.

  The kernel is `[E, in, features]`. The site `kernel` gives an adapter what a `Linear`'s does, and
  `sizes`, the rows of each expert.
  """

  features: int

  @nn.compact
  def __call__(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
    shape = (sizes.shape[0], x.shape[-1], self.features)
    kernel: Any = self.get_variable("params", "kernel")
    if not is_matrix(kernel):
      kernel = self.param("kernel", nn.initializers.normal(0.02), shape)
    y = tap(self, "kernel", grouped(x, kernel, sizes), x=x, kernel=kernel, sizes=sizes)
    return remat.keep(y.astype(x.dtype), remat.PROJECTION)


class Experts(nn.Module):
  """Gated feed-forward layers, one an expert: `[M, D]`, sorted by expert -> `[M, D]`."""

  hidden: int
  activation: str

  @nn.compact
  def __call__(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
    up = ExpertLinear(self.hidden, name="up_proj")(x, sizes)
    gate = ExpertLinear(self.hidden, name="gate_proj")(x, sizes)
    return ExpertLinear(x.shape[-1], name="down_proj")(gated(self.activation, gate, up), sizes)


class MoE(nn.Module):
  """`[B, S, D]` -> `[B, S, D]`: the weighted sum of each token's `top_k` experts.

  The router computes in float32 whatever the type of `x` (Fedus et al. 2021, section 2.4). Where
  the collection `routing` is mutable, the layer puts the router's `logits [B, S, E]` there.

  normalize: the weights of the chosen experts are made to sum to 1; else they are as the softmax
    over all experts has them.
  """

  num_experts: int
  top_k: int
  hidden: int
  activation: str
  normalize: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    logits = Linear(self.num_experts, name="router")(x.astype(jnp.float32))  # [B, S, E]
    if not self.is_initializing():
      self.sow(ROUTING, "logits", logits, init_fn=lambda: None, reduce_fn=lambda _, new: new)
    weights, chosen = jax.lax.top_k(jax.nn.softmax(logits), self.top_k)  # [B, S, top_k]
    if self.normalize:
      weights = weights / jnp.sum(weights, axis=-1, keepdims=True)

    features = x.shape[-1]
    experts = chosen.reshape(-1)  # [M]
    order = jnp.argsort(experts)
    back = jnp.argsort(order)
    sizes = jnp.bincount(experts, length=self.num_experts)
    copies = jnp.broadcast_to(x[..., None, :], (*chosen.shape, features)).reshape(-1, features)
    out = Experts(self.hidden, self.activation, name="experts")(
      _permute(copies, order, back), sizes
    )
    out = _permute(out, back, order).reshape(*chosen.shape, features).astype(jnp.float32)
    return jnp.sum(out * weights[..., None], axis=-2).astype(x.dtype)


@jax.custom_vjp
def _permute(x, there, back):
  """Rows `there` of `x`; `back` is the inverse, which saves the derivative a scatter."""
  del back
  return x[there]


_permute.defvjp(lambda x, there, back: (x[there], back), lambda back, g: (g[back], None, None))
