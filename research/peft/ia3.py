"""IA3: scales of keys, values and the feed-forward's inside (Liu et al. 2022, arXiv:2205.05638)."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from research.core.dot import dot
from research.peft.adapter import Adapter
from research.peft.kernel import require_matrix, scaled


@struct.dataclass
class IA3(Adapter):
  """A projection with its outputs scaled, bias included, or its inputs (section 3.3).

  scale: of the outputs, or of the inputs if `feedforward`.
  live: 1, or 0 at layers of a stack that have no adapter.
  """

  constants: ClassVar[frozenset[str]] = frozenset({"live"})

  scale: jax.Array  # [..., out], or [..., in]
  live: jax.Array  # [...]
  feedforward: bool = struct.field(pytree_node=False, default=False)

  def __call__(self, value, *, x, kernel, bias=None, **_):
    """`value [..., out]` float32, `x [..., in]` -> float32 `[..., out]`, without the bias."""
    scale = self._effective()
    if self.feedforward:
      # Nothing uses `value` then, and the compiler drops its product.
      return dot(scaled(x.astype(jnp.float32), scale, x.dtype).astype(x.dtype), kernel)
    value = scaled(value, scale, x.dtype)
    return value if bias is None else value + (scale - 1) * bias

  def merge(self, kernel):
    """The kernel with its columns scaled, or its rows if `feedforward`, in its own type."""
    axis = -1 if self.feedforward else -2
    scale = jnp.expand_dims(self._effective(), axis)
    return (kernel.astype(jnp.float32) * scale).astype(kernel.dtype)

  def merge_bias(self, bias):
    """See `Adapter.merge_bias`."""
    if self.feedforward:
      return bias
    return (bias.astype(jnp.float32) * self._effective()).astype(bias.dtype)

  @property
  def reads_kernel(self) -> bool:
    """See `Adapter.reads_kernel`."""
    return self.feedforward

  def _effective(self):
    return jnp.where(self.live[..., None] > 0, self.scale, 1.0)


def init(path: str, kernel: jax.Array, rng: jax.Array, *, feedforward: bool | None = None) -> IA3:
  """An IA3 that changes nothing yet: scales of 1.

  Args:
    path: where `kernel` lies, as in `layers/attention/k_proj/kernel`.
    kernel: `[in, out]` or `[layers, in, out]`, or its shape.
    rng: not used.
    feedforward: whether inputs are scaled, as PEFT's `feedforward_modules` are; by default at
      `mlp/down_proj`, whose inputs are the inside of the feed-forward.

  Raises:
    ValueError: the leaf is no projection's kernel.
  """
  del rng
  require_matrix("IA3", path, kernel)
  *stack, features, out = kernel.shape
  if feedforward is None:
    feedforward = path.endswith("mlp/down_proj/kernel")
  return IA3(
    scale=jnp.ones((*stack, features if feedforward else out), jnp.float32),
    live=jnp.ones(stack, jnp.float32),
    feedforward=feedforward,
  )
