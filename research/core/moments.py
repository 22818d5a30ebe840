"""Moments and sizes of the rows that a projection reads: what calibration goes by.

B batch, S sequence, n features.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from research.core.products import outer


@struct.dataclass
class Moments:
  """Sums over the rows `x [..., n]` that were seen; an observer (`research.nn.tap`).

  weights: of the rows to come, 0 where one is to be left out.
  count: the sum of weights so far.
  total: the weighted sum of rows.
  products: the weighted sum of `x^T x`.
  sizes: the weighted sum of `|x|`.
  peaks: the largest `|x|` of a row that counts.
  """

  weights: jax.Array  # [..., B, S]
  count: jax.Array  # [...]
  total: jax.Array  # [..., n]
  products: jax.Array  # [..., n, n]
  sizes: jax.Array  # [..., n]
  peaks: jax.Array  # [..., n]

  @classmethod
  def none(cls, stack: tuple[int, ...], features: int) -> Moments:
    """Of nothing yet, for a kernel `[*stack, features, out]`; `weights` are still to be given."""
    row = (features,)
    shapes: tuple[tuple[int, ...], ...] = ((0, 0), (), row, (features, features), row, row)
    return cls(*(jnp.zeros((*stack, *shape), jnp.float32) for shape in shapes))

  def expecting(self, weights: Any) -> Moments:
    """The same, ready for rows of these weights `[B, S]`."""
    stack = self.count.shape
    return self.replace(weights=jnp.broadcast_to(weights, (*stack, *weights.shape)))  # type: ignore[attr-defined]

  def observe(self, *, x: jax.Array, **_: Any) -> Moments:
    """With `x [B, S, n]` seen; sums are float32, of products in the type of `x`."""
    rows = x.reshape(-1, x.shape[-1])
    weights = self.weights.reshape(-1).astype(jnp.float32)
    weighted = rows.astype(jnp.float32) * weights[:, None]
    absolute = jnp.abs(rows.astype(jnp.float32))
    return self.replace(  # type: ignore[attr-defined]
      count=self.count + weights.sum(),
      total=self.total + weighted.sum(axis=0),
      products=self.products + outer(weighted.astype(x.dtype), rows),
      sizes=self.sizes + jnp.sum(absolute * weights[:, None], axis=0),
      peaks=jnp.maximum(self.peaks, jnp.max(absolute * (weights[:, None] > 0), axis=0)),
    )

  def covariance(self, layer: int) -> np.ndarray:
    """float64 `[n, n]`: of the rows that one layer of a stack saw, around their mean."""
    count = np.float64(self.count[layer])
    mean = np.asarray(self.total[layer], np.float64) / count
    return np.asarray(self.products[layer], np.float64) / count - np.outer(mean, mean)
