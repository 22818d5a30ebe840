"""Positions: rotary embedding (Su et al. 2021, RoFormer), its long-context scalings, sinusoids.

What depends on distance alone and is added to scores is in `bias.py`.

B batch, S sequence, D model, K head size, R the part of it that turns.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotation of pairs `(i, i + R/2)` by `position * theta**(-2i/R)`, maybe rescaled.

  kind:
    "default";
    "linear": positions divided by `factor`;
    "llama3": low frequencies divided by `factor`, high ones kept, a ramp between, by turns within
      `original_max_positions` (Llama 3.1, arXiv:2407.21783);
    "yarn": the same with a ramp over dimensions, from `beta_fast` turns to `beta_slow`, whole
      dimensions if `truncate` (Peng et al. 2023, arXiv:2309.00071);
    "dynamic": a larger `theta` for documents longer than `original_max_positions`;
    "longrope": each frequency divided by its own factor, of `long_factors` in documents longer
      than `original_max_positions`, else of `short_factors` (Ding et al. 2024, arXiv:2402.13753).
  fraction: of the head's features that turn, the first ones.
  magnitude: multiplies cosines and sines.
  """

  theta: float = 10_000.0
  kind: str = "default"
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_positions: int = 8192
  fraction: float = 1.0
  magnitude: float = 1.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  short_factors: tuple[float, ...] = ()
  long_factors: tuple[float, ...] = ()

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f"rope type {self.kind!r} is unknown; known: {', '.join(KINDS)}")

  @property
  def by_length(self) -> bool:
    """Whether frequencies depend on the document's length."""
    return self.kind in ("dynamic", "longrope")

  def frequencies(self, head_size: int, lengths: jax.Array | None = None) -> jax.Array | np.ndarray:
    """Radians a position, `[R/2]` float32; if `by_length`, `[*lengths.shape, R/2]`.

    Raises:
      ValueError: the factors of "longrope" are not R/2.
    """
    size = int(head_size * self.fraction)
    exponents = np.arange(0, size, 2, dtype=np.float64) / size
    plain = self.theta**-exponents
    if self.kind == "linear":
      plain = plain / self.factor
    if self.kind in ("llama3", "yarn"):
      keep = np.clip(self._kept(plain, size), 0.0, 1.0)
      plain = plain * keep + plain / self.factor * (1 - keep)
    if not self.by_length:
      return plain.astype(np.float32)
    if lengths is None:
      raise ValueError(f"rope type {self.kind!r} needs the documents' lengths")
    lengths = lengths[..., None]
    if self.kind == "dynamic":
      stretch = jnp.maximum(lengths / self.original_max_positions, 1.0)
      stretch = (self.factor * stretch - (self.factor - 1)) ** (size / (size - 2))
      return (plain * stretch**-exponents).astype(jnp.float32)
    if {len(self.short_factors), len(self.long_factors)} != {size // 2}:
      raise ValueError(
        f"longrope has {len(self.short_factors)} short and {len(self.long_factors)} long factors;"
        f" heads of which {size} features turn need {size // 2}"
      )
    short, long = (
      (plain / np.array(factors)).astype(np.float32)
      for factors in (self.short_factors, self.long_factors)
    )
    return jnp.where(lengths > self.original_max_positions, long, short)

  def _kept(self, plain, size):
    """1 where a frequency is kept, 0 or less where it is divided, a ramp between."""
    if self.kind == "llama3":
      turns = self.original_max_positions * plain / (2 * math.pi)
      return (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)

    def dimension(turns):
      ratio = math.log(self.original_max_positions / (turns * 2 * math.pi))
      return size * ratio / (2 * math.log(self.theta))

    low, high = dimension(self.beta_fast), dimension(self.beta_slow)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
      high += 0.001
    return 1 - (np.arange(size // 2) - low) / (high - low)


KINDS = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")


def rotation(
  rope: Rope, positions: jax.Array, head_size: int, lengths: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Cosines and signed sines of `positions [B, S]`, each float32 `[B, S, 2, R/2]`.

  The sign of the sine's first half is negative, so that `rotate` is a product, a flip
  and a sum: one vectorized loop, where slices and a concatenation would be several.

  Args:
    lengths: `[B, S]` or `[B, 1]`, of each token's document; needed if `rope.by_length`.
  """
  frequencies = rope.frequencies(head_size, lengths)
  angles = positions[..., None].astype(jnp.float32) * frequencies  # [B, S, R/2]
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  if rope.magnitude != 1.0:
    cos, sin = cos * rope.magnitude, sin * rope.magnitude
  return jnp.stack([cos, cos], axis=-2), jnp.stack([-sin, sin], axis=-2)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates `x [B, ..., S, K]` by the tables of `rotation`, in float32, to the type of `x`."""
  size = 2 * cos.shape[-1]
  if size < x.shape[-1]:
    return jnp.concatenate([rotate(x[..., :size], cos, sin), x[..., size:]], axis=-1)
  halves = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2).astype(jnp.float32)
  over = tuple(range(1, x.ndim - 2))
  cos, sin = jnp.expand_dims(cos, over), jnp.expand_dims(sin, over)  # [B, ..., S, 2, K/2]
  turned = halves * cos + jnp.flip(halves, axis=-2) * sin
  return turned.reshape(x.shape).astype(x.dtype)


def sinusoidal(positions: jax.Array, features: int) -> jax.Array:
  """Sines and cosines of `positions [B, S]` in turns, float32 `[B, S, D]`.

  Features `2i` and `2i + 1` have the angle `position / 10000^(2i / D)` (Vaswani et al. 2017,
  section 3.5).
  """
  frequencies = 10_000.0 ** -(np.arange(0, features, 2, dtype=np.float64) / features)
  angles = positions[..., None].astype(jnp.float32) * frequencies.astype(np.float32)
  pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
  return pairs.reshape(*positions.shape, -1)[..., :features]
