"""What a cache in few bits costs, without writing a token: whole rows that see what it would hold.

B batch, N key/value heads, S tokens of a row, K head size.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import struct

from research import peft
from research.core import tree
from research.models import DecoderConfig
from research.peft.adapter import is_adapter
from research.quant.cache import CacheScheme, FewBits

SITE = "layers/attention/kv"


@struct.dataclass
class Remembered(peft.Adapter):
  """Each query of a row sees recent keys and values as they are, and older ones in few bits.

  As a model does that has written the row token by token. Tokens are at their positions in the row,
  which is one document.
  """

  scheme: CacheScheme = struct.field(pytree_node=False)

  def __call__(self, value, *, queries, scale, **_):
    """Keys, values `[B, N, S, K]`, mask `[B, S, S]` -> each twice, rounded and as it is; a bias."""
    keys, values, mask, _ = value
    length = keys.shape[2]
    slots = self.scheme.slots(length)
    real = mask.any(axis=1)
    few = FewBits.of(keys.swapaxes(2, 3), values, real, self.scheme, slots)
    rounded = few.rounded()
    old = jnp.arange(length) < self.scheme.kept(jnp.arange(length))[:, None]
    old = old & ~few.sinks(length)[:, None]
    bias = few.rounded_bias(queries, scale)[..., :length]
    return (
      jnp.concatenate([rounded[0][..., :length].swapaxes(2, 3).astype(keys.dtype), keys], axis=2),
      jnp.concatenate([rounded[1][:, :, :length].astype(values.dtype), values], axis=2),
      jnp.concatenate([mask & old, mask & ~old], axis=-1),
      jnp.pad(bias, [(0, 0)] * 3 + [(0, length)]),
    )


def remembering(scheme: CacheScheme, variables: Any, config: DecoderConfig) -> Any:
  """`variables` of a decoder that reads whole rows as if through such a cache.

  Raises:
    ValueError: an adapter or a bias of scores by distance is in the way.
  """
  if config.positions == "alibi":
    raise ValueError("a cache in few bits is measured without a bias of scores, which alibi has")
  adapters = tree.flatten(variables.get("adapters", {}), is_leaf=is_adapter)
  if SITE in adapters:
    raise ValueError("a cache in few bits is measured without a prefix, which takes its place")
  return {**variables, "adapters": tree.unflatten({**adapters, SITE: Remembered(scheme)})}
