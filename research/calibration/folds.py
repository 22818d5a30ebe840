"""Scaling what a projection reads, and its kernel by the inverse: the layer computes the same.

The inverse goes into what stands before: a norm, or the projection whose outputs are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from research.models.config import StackConfig


@dataclasses.dataclass(frozen=True)
class Fold:
  """Projections that read the same inputs, and what makes those.

  source: path within a layer of a norm, or of a projection.
  readers: paths of kernels, all that read it.
  group: how many heads of queries share a head of values, where the source makes values.
  head_size: of those.
  """

  source: str
  readers: tuple[str, ...]
  group: int = 1
  head_size: int = 0

  def tied(self, sizes: jax.Array, together: Callable[..., jax.Array] = jnp.mean) -> jax.Array:
    """`sizes [in]` of what is read, the same wherever the source makes the same.

    together: makes one of several along an axis.
    """
    if self.group == 1:
      return sizes
    heads = sizes.reshape(-1, self.group, self.head_size)
    one = together(heads, axis=1, keepdims=True)
    return jnp.broadcast_to(one, heads.shape).reshape(-1)

  def apply(self, params: Mapping[str, Any], scales: jax.Array, norm: str) -> dict[str, Any]:
    """A layer's parameters, by path, whose readers are `kernel * scales[:, None]`.

    norm: the kind of the model's norms.
    """
    found = dict(params)
    for path in self.readers:
      found[path] = _times(params[path], scales[:, None])
    if self.group > 1:
      scales = scales.reshape(-1, self.group, self.head_size)[:, 0].reshape(-1)
    for leaf in ("kernel", "scale", "bias"):
      path = f"{self.source}/{leaf}"
      if path not in params:
        continue
      if leaf == "scale" and norm == "rms_plus_one":
        found[path] = _times(1 + params[path].astype(jnp.float32), 1 / scales) - 1
      else:
        found[path] = _times(params[path], 1 / scales)
    return found


def _times(values, by):
  return (values.astype(jnp.float32) * by).astype(values.dtype)


def folds(config: StackConfig, params: Mapping[str, Any]) -> list[Fold]:
  """Where the layers of a model have a place for the inverse of scales.

  Args:
    config: the model's.
    params: those of a layer, by path within it.
  """
  found = []
  readers = {
    "attention_norm": [f"attention/{name}_proj/kernel" for name in "qkv"],
    "mlp_norm": [
      path
      for path in params
      if path.startswith("mlp/") and path.endswith("/kernel") and "down_proj" not in path
    ],
  }
  for norm, paths in readers.items():
    # A norm after the sum is what the next sub-layer reads, and the stream itself.
    if f"{norm}/scale" in params:
      found.append(Fold(norm, tuple(paths)))
  group = config.num_heads // config.num_kv_heads
  found.append(Fold("attention/v_proj", ("attention/o_proj/kernel",), group, config.head_size))
  # Without a gate a function that is not linear stands between.
  if "mlp/gate_proj/kernel" in params:
    found.append(Fold("mlp/up_proj", ("mlp/down_proj/kernel",)))
  return found
