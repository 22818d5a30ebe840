"""How large the numbers are that projections read, for activations rounded by one scale.

Magnitudes are counted as numbers of bfloat16, of which there are 2^15: what is told of activations
in that type is exact, and of others within 2^-8 of itself.

B batch, S sequence, n features.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from research.quant.integer import MOST
from research.quant.scheme import Scheme

_NUMBERS = 2**15
_TRIED = 2.0 ** (-np.arange(96) / 8)  # shares of the largest number, down to 1 in 4,000


@struct.dataclass
class Magnitudes:
  """Counts over the numbers `|x|` that were seen; an observer (`research.nn.tap`).

  A stack's have its axis in front, of which a layer sees its own.

  weights: of the rows to come, 0 where one is to be left out.
  counts: by their bits in bfloat16.
  largest: of all numbers.
  peaks: the sum of the largest number of each batch.
  batches: how many.
  """

  weights: jax.Array  # [..., B, S]
  counts: jax.Array  # [..., 2^15]
  largest: jax.Array  # [...]
  peaks: jax.Array  # [...]
  batches: jax.Array  # [...]

  @classmethod
  def none(cls, stack: tuple[int, ...] = ()) -> Magnitudes:
    """Of nothing yet; `weights` are still to be given."""
    shapes: tuple[tuple[int, ...], ...] = ((0, 0), (_NUMBERS,), (), (), ())
    return cls(*(jnp.zeros((*stack, *shape), jnp.float32) for shape in shapes))

  def expecting(self, weights: jax.Array) -> Magnitudes:
    """The same, ready for rows of these weights `[B, S]`."""
    stack = self.largest.shape
    return self.replace(weights=jnp.broadcast_to(weights, (*stack, *weights.shape)))  # type: ignore[attr-defined]

  def observe(self, *, x: jax.Array, **_: Any) -> Magnitudes:
    """With `x [B, S, n]` seen."""
    counts = (self.weights > 0)[..., None]  # [B, S, 1]
    bits = jax.lax.bitcast_convert_type(jnp.abs(x.astype(jnp.bfloat16)), jnp.uint16)
    # Of a batch as integers: float32 stops counting at 2^24.
    found = jnp.zeros(_NUMBERS, jnp.int32).at[bits].add(counts.astype(jnp.int32))
    peak = jnp.max(jnp.where(counts, jnp.abs(x.astype(jnp.float32)), 0))
    return self.replace(  # type: ignore[attr-defined]
      counts=self.counts + found.astype(jnp.float32),
      largest=jnp.maximum(self.largest, peak),
      peaks=self.peaks + peak,
      batches=self.batches + 1,
    )

  def scale(self, scheme: Scheme) -> jax.Array:
    """The scale of int8 that `scheme.range` makes of what was seen, float32 `[...]`.

    Raises:
      ValueError: nothing was seen, or numbers that are not finite.
    """
    if self.largest.ndim:
      leaves, form = jax.tree.flatten(self)
      each = (jax.tree.unflatten(form, parts) for parts in zip(*leaves, strict=True))
      return jnp.stack([layer.scale(scheme) for layer in each])
    counts = np.asarray(self.counts, np.float64)
    if not counts.any():
      raise ValueError("calibration data has no tokens")
    sizes = np.arange(_NUMBERS, dtype=np.uint16).view(jnp.bfloat16)[counts > 0].astype(np.float64)
    counts = counts[counts > 0]  # of those sizes, which rise
    if not np.isfinite(sizes).all():
      raise ValueError("activations of calibration data are not finite; mend the checkpoint first")
    if scheme.range == "absmax":
      limit = float(self.largest)
    elif scheme.range == "average":
      limit = float(self.peaks / self.batches)
    elif scheme.range == "percentile":
      below = np.cumsum(counts)
      limit = sizes[np.searchsorted(below, below[-1] * scheme.percentile / 100)]
    else:
      limit = _of_least_error(sizes, counts)
    return jnp.float32(limit / MOST)


def _of_least_error(sizes, counts):
  """The share of the range by which the sum of squared errors is least."""
  limits = sizes[-1] * _TRIED

  def error(limit):
    scale = max(limit, np.finfo(np.float64).tiny) / MOST
    rounded = np.minimum(np.round(sizes / scale), MOST) * scale
    return counts @ (rounded - sizes) ** 2

  return limits[np.argmin([error(limit) for limit in limits])]
