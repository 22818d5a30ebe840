"""Projections."""

from typing import Any

import flax.linen as nn
import jax

from research.nn.dot import Transposed, dot
from research.nn.tap import tap


class Linear(nn.Module):
  """`[..., in]` -> `[..., features]`, rounded once, after bias and adapter.

  The site `kernel` gives an adapter the float32 product and `x`, `kernel`.
  """

  features: int
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel: Any = self.get_variable("params", "kernel")
    if not isinstance(kernel, Transposed):
      kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features))
    y = tap(self, "kernel", dot(x, kernel), x=x, kernel=kernel)
    if self.use_bias:
      y = y + self.param("bias", nn.initializers.zeros, (self.features,))
    return y.astype(x.dtype)
