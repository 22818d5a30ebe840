"""Normalization, in float32, with the derivative written out.

The derivatives keep the input in its own type and one statistic a row, where
automatic differentiation would keep float32 copies of whole activations. The forward pass
multiplies by the statistic and the scale together, the backward pass by one after the other:
of a product that both had, the compiler would store a float32 copy after all.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """`x / sqrt(mean(x^2) + eps) * scale` over the last axis (Zhang & Sennrich 2019)."""
  return _rms_forward(x, scale, eps)[0]


def _rms_forward(x, scale, eps):
  wide = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
  y = (wide * (inverse * scale.astype(jnp.float32))).astype(x.dtype)
  return y, (x, scale, inverse)


def _rms_backward(eps, residuals, g):
  del eps
  x, scale, inverse = residuals
  g = g.astype(jnp.float32)
  unit = x.astype(jnp.float32) * inverse
  dunit = g * scale.astype(jnp.float32)
  dx = inverse * (dunit - unit * jnp.mean(dunit * unit, axis=-1, keepdims=True))
  dscale = jnp.sum(g * unit, axis=tuple(range(x.ndim - 1)))
  return dx.astype(x.dtype), dscale.astype(scale.dtype)


rms_norm.defvjp(_rms_forward, _rms_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
  """`(x - mean) / sqrt(var + eps) * scale + bias` over the last axis (Ba et al. 2016)."""
  return _layer_forward(x, scale, bias, eps)[0]


def _layer_forward(x, scale, bias, eps):
  wide = x.astype(jnp.float32)
  mean = jnp.mean(wide, axis=-1, keepdims=True)
  inverse = jax.lax.rsqrt(jnp.mean((wide - mean) ** 2, axis=-1, keepdims=True) + eps)
  y = (wide - mean) * (inverse * scale.astype(jnp.float32)) + bias.astype(jnp.float32)
  return y.astype(x.dtype), (x, scale, bias, mean, inverse)


def _layer_backward(eps, residuals, g):
  del eps
  x, scale, bias, mean, inverse = residuals
  g = g.astype(jnp.float32)
  unit = (x.astype(jnp.float32) - mean) * inverse
  dunit = g * scale.astype(jnp.float32)
  dx = inverse * (
    dunit
    - jnp.mean(dunit, axis=-1, keepdims=True)
    - unit * jnp.mean(dunit * unit, axis=-1, keepdims=True)
  )
  rows = tuple(range(x.ndim - 1))
  return (
    dx.astype(x.dtype),
    jnp.sum(g * unit, axis=rows).astype(scale.dtype),
    jnp.sum(g, axis=rows).astype(bias.dtype),
  )


layer_norm.defvjp(_layer_forward, _layer_backward)


class Norm(nn.Module):
  """RMSNorm or LayerNorm over the last axis.

  kind: "rms", "layer", or "rms_plus_one": RMSNorm whose scale is kept as its difference from 1.
  """

  kind: str
  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    plus_one = self.kind == "rms_plus_one"
    initial = nn.initializers.zeros if plus_one else nn.initializers.ones
    scale = self.param("scale", initial, (x.shape[-1],))
    if plus_one:
      scale = 1 + scale.astype(jnp.float32)
    if plus_one or self.kind == "rms":
      return rms_norm(x, scale, self.eps)
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    return layer_norm(x, scale, bias, self.eps)
