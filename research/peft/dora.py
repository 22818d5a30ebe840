"""DoRA: LoRA of a kernel's directions, and its magnitudes (Liu et al. 2024, arXiv:2402.09353)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from research.core.dot import across
from research.core.matrix import Matrix
from research.core.products import matmul, outer
from research.peft import lora
from research.peft.adapter import Adapter
from research.peft.kernel import dropped, require_matrix, require_numbers, scaled
from research.peft.lora import LoRA


@struct.dataclass
class DoRA(Adapter):
  """`m / n * (x W + scale * (x a) b)` at a projection's `kernel [..., in, out]`, before its bias.

  `n` are the norms of the columns of `W + scale * a b`, through which no gradient flows (section
  4.3, eq. 11). Factors, ranks and stacks are as `LoRA`'s, and where the rank is 0 there is no
  adapter. Dropout is before the factors alone, so that the base's product is used again; PEFT drops
  the inputs of both and multiplies twice.

  magnitude: `m`, the norms of the columns of the kernel at first.
  squares: the squares of those; the kernel must not train.
  """

  constants: ClassVar[frozenset[str]] = frozenset({"scale", "squares"})

  a: jax.Array  # [..., in, R]
  b: jax.Array  # [..., R, out]
  scale: jax.Array  # [...]
  magnitude: jax.Array  # [..., out]
  squares: jax.Array  # [..., out]
  ranks: tuple[int, ...] = struct.field(pytree_node=False)
  dropout: float = struct.field(pytree_node=False, default=0.0)

  def __call__(self, value, *, x, kernel, rng=None, **_):
    """`value [..., out]` float32, `x [..., in]` -> float32 `[..., out]`."""
    x_low = dropped(x, self.dropout, rng)
    adapted = value + lora.low_rank(x_low, self.a, self.b, self.scale)
    gain = jnp.where(self.scale == 0, 1.0, self.magnitude / self._norms(kernel))
    return scaled(adapted, gain, x.dtype)

  @property
  def frozen_kernel(self) -> bool:
    """See `Adapter.frozen_kernel`."""
    return True

  @property
  def reads_kernel(self) -> bool:
    """See `Adapter.reads_kernel`."""
    return True

  def _norms(self, kernel: jax.Array | Matrix) -> jax.Array:
    """`n [out]`, by |w|^2 + 2 s <w, a b> + s^2 |a b|^2: no matrix of the kernel's size is made."""
    kernel, a, b, scale = jax.lax.stop_gradient((kernel, self.a, self.b, self.scale))
    mixed = jnp.sum(across(kernel, a).T * b, axis=0)
    own = jnp.sum(b * matmul(outer(a, a), b, (1, 0)), axis=0)
    return _roots(self.squares + scale * (2 * mixed + scale * own))

  def on(self, kernel, before) -> DoRA:
    """With the magnitudes of another kernel."""
    factors = LoRA(self.a, self.b, self.scale, self.ranks, self.dropout)
    return with_magnitude(factors, kernel)

  def merge(self, kernel):
    """`m / n * (kernel + scale * a b)`, computed in float32, in the type of `kernel`."""
    factors = LoRA(self.a, self.b, self.scale, self.ranks)
    adapted = factors.merge(kernel.astype(jnp.float32))
    gain = self.magnitude / _roots(column_squares(adapted))
    gain = jnp.where(self.scale[..., None] == 0, 1.0, gain)
    return (adapted * gain[..., None, :]).astype(kernel.dtype)


def init(
  path: str,
  kernel: jax.Array,
  rng: jax.Array,
  *,
  rank: int = 8,
  alpha: float = 8,
  dropout: float = 0.0,
  rank_stabilized: bool = False,
  rank_pattern: Mapping[str, int] | None = None,
  alpha_pattern: Mapping[str, float] | None = None,
) -> DoRA:
  """A DoRA that changes nothing yet; arguments and errors are those of `research.peft.lora.init`.

  Raises:
    ValueError: also for the experts of a mixture, and where `kernel` is only a shape.
  """
  require_matrix("DoRA", path, kernel)
  require_numbers("DoRA", path, kernel)
  factors = lora.init(
    path,
    kernel,
    rng,
    rank=rank,
    alpha=alpha,
    dropout=dropout,
    rank_stabilized=rank_stabilized,
    rank_pattern=rank_pattern,
    alpha_pattern=alpha_pattern,
  )
  return with_magnitude(factors, kernel)


def with_magnitude(factors: LoRA, kernel: jax.Array) -> DoRA:
  """The DoRA of `factors` whose magnitudes are those of `kernel`."""
  squares = column_squares(kernel)
  return DoRA(
    a=factors.a,
    b=factors.b,
    scale=factors.scale,
    magnitude=_roots(squares),
    squares=squares,
    ranks=factors.ranks,
    dropout=factors.dropout,
  )


@jax.jit  # so that no float32 copy of a stack is made
def column_squares(kernel: jax.Array) -> jax.Array:
  """`[..., in, out]` -> float32 `[..., out]`."""
  return jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=-2)


def _roots(squares):
  """Square roots, nowhere zero: a column of zeros has no direction."""
  roots = jnp.sqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny))
  # The compiler would turn the division by a root into a product with an approximate inverse, and
  # the norms of a new adapter would not be exactly its magnitudes.
  return jax.lax.optimization_barrier(roots)
