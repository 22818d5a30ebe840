"""How a decoder's attention is spread, told by each layer while it runs.

L layers, B batch, S sequence, T keys, N kv heads, G queries' heads of each, H = N * G, K head size.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core.products import matmul
from research.nn.tap import OBSERVERS

SITE = "layers/attention/kv"
_UNSEEN = -1e30  # a score of no probability; finite, so that a query that sees nothing is no NaN


@struct.dataclass
class Spread:
  """Of each query, float32 `[L, B, H, S]` (of a layer, `[B, H, S]`).

  entropy: of its weights, `-sum A log A`, in nats.
  share: of the most possible, `log` of the number of tokens that it sees.
  first: its weight on the row's first token.
  counts: 1 where it sees two tokens or more; else this and all others are 0.
  """

  entropy: jax.Array
  share: jax.Array
  first: jax.Array
  counts: jax.Array
  softcap: float | None = struct.field(pytree_node=False, default=None)

  def observe(self, *, value: Any, queries: jax.Array, scale: float, **_: Any) -> Spread:
    keys, _, mask, bias = value
    batch, kv_heads, group, length, size = queries.shape
    flat = queries.reshape(batch, kv_heads, group * length, size)
    scores = matmul(flat, keys, (3, 3), batch=2) * scale
    if self.softcap is not None:
      scores = self.softcap * jnp.tanh(scores / self.softcap)
    scores = scores.reshape(batch, kv_heads * group, length, -1)  # [B, H, S, T]
    scores = scores if bias is None else scores + bias
    seen = mask[:, None]
    log_weights = jax.nn.log_softmax(jnp.where(seen, scores, _UNSEEN))
    weights = jnp.where(seen, jnp.exp(log_weights), 0.0)
    visible = jnp.sum(seen, axis=-1)  # [B, 1, S]
    counts = jnp.broadcast_to(visible > 1, weights.shape[:3]).astype(jnp.float32)
    entropy = -jnp.sum(weights * log_weights, axis=-1) * counts
    return Spread(
      entropy,
      entropy / jnp.log(jnp.maximum(visible, 2)),
      weights[..., 0] * counts,
      counts,
      self.softcap,
    )


def spread(model: Any, variables: Any, tokens: jax.Array, segments: jax.Array) -> Spread:
  """A decoder's forward pass over rows `[B, S]`, one document each.

  No layer's weights outlive it. Keys that an adapter puts in front of a row are not among them.
  """
  nothing = jnp.zeros((model.config.num_layers, 0))
  observer = Spread(nothing, nothing, nothing, nothing, model.config.attention_softcap)
  # In a loop over the layers, which holds one layer's weights at a time.
  _, changed = model.clone(unroll=1).apply(
    {**variables, OBSERVERS: {"layers": {"attention": {"kv": observer}}}},
    tokens,
    segments=segments,
    method="hidden",
    mutable=[OBSERVERS],
  )
  return changed[OBSERVERS]["layers"]["attention"]["kv"]
