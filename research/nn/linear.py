"""Projections."""

from typing import Any

import flax.linen as nn
import jax

from research.core.dot import dot
from research.core.matrix import is_matrix
from research.nn import remat
from research.nn.tap import tap


class Linear(nn.Module):
  """`[..., in]` -> `[..., features]`, rounded once, after bias and adapter.

  The site `kernel` gives an adapter the float32 product, to which the bias is still to be added,
  and `x`, `kernel` and `bias`, None without one.
  """

  features: int
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel: Any = self.get_variable("params", "kernel")
    if not is_matrix(kernel):
      kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features))
    bias = None
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
    y = tap(self, "kernel", dot(x, kernel), x=x, kernel=kernel, bias=bias)
    if bias is not None:
      y = y + bias
    return remat.keep(y.astype(x.dtype), remat.PROJECTION)
