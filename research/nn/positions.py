"""Rotary position embedding (Su et al. 2021, RoFormer) and its long-context scalings.

B batch, S sequence, K head size.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotation of pairs `(i, i + K/2)` by `position * theta**(-2i/K)`, maybe rescaled.

  kind: "default", "linear" (positions divided by `factor`) or "llama3" (low
    frequencies divided by `factor`, high ones kept, a ramp between; Llama 3.1).
  """

  theta: float = 10_000.0
  kind: str = "default"
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_positions: int = 8192

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f"rope type {self.kind!r} is unknown; known: {', '.join(KINDS)}")

  def frequencies(self, head_size: int) -> np.ndarray:
    """Radians a position, `[K/2]` float32."""
    plain = 1.0 / self.theta ** (np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    if self.kind == "linear":
      plain = plain / self.factor
    if self.kind == "llama3":
      turns = self.original_max_positions * plain / (2 * math.pi)
      keep = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
      keep = np.clip(keep, 0.0, 1.0)
      plain = plain * keep + plain / self.factor * (1 - keep)
    return plain.astype(np.float32)


KINDS = ("default", "linear", "llama3")


def rotation(rope: Rope, positions: jax.Array, head_size: int) -> tuple[jax.Array, jax.Array]:
  """Cosines and signed sines of `positions [B, S]`, each float32 `[B, S, 2, K/2]`.

  The sign of the sine's first half is negative, so that `rotate` is a product, a flip
  and a sum: one vectorized loop, where slices and a concatenation would be several.
  """
  angles = positions[..., None].astype(jnp.float32) * rope.frequencies(head_size)  # [B, S, K/2]
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  return jnp.stack([cos, cos], axis=-2), jnp.stack([-sin, sin], axis=-2)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates `x [B, ..., S, K]` by the tables of `rotation`, in float32, to the type of `x`."""
  halves = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2).astype(jnp.float32)
  over = tuple(range(1, x.ndim - 2))
  cos, sin = jnp.expand_dims(cos, over), jnp.expand_dims(sin, over)  # [B, ..., S, 2, K/2]
  turned = halves * cos + jnp.flip(halves, axis=-2) * sin
  return turned.reshape(x.shape).astype(x.dtype)
