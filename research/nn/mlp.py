"""Feed-forward sub-layers: plain, and gated (SwiGLU, Shazeer 2020)."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.nn.linear import Linear


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """`x Phi(x)` in float32, to the type of `x`, which is all it keeps (arXiv:1606.08415, eq. 1)."""
  wide = x.astype(jnp.float32)
  return (wide * _phi(wide)).astype(x.dtype)


def _phi(x):
  """The normal distribution function."""
  return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


def _gelu_forward(x):
  return gelu(x), x


def _gelu_backward(x, g):
  wide = x.astype(jnp.float32)
  density = jnp.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
  return (((_phi(wide) + wide * density) * g.astype(jnp.float32)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "gelu": gelu,
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "relu": jax.nn.relu,
}


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
  """`silu(gate) * up` in float32, to the type of `gate`; keeps only its two inputs."""
  wide = gate.astype(jnp.float32)
  return (jax.nn.silu(wide) * up.astype(jnp.float32)).astype(gate.dtype)


def _forward(gate, up):
  return swiglu(gate, up), (gate, up)


def _backward(residuals, g):
  # The sigmoid by another formula than the forward pass: the compiler would find the same one
  # twice, compute it once and keep it in float32.
  gate, up = residuals
  wide, g = gate.astype(jnp.float32), g.astype(jnp.float32)
  s = 0.5 + 0.5 * jnp.tanh(0.5 * wide)
  dup = g * wide * s
  dgate = g * up.astype(jnp.float32) * s * (1 + wide * (1 - s))
  return dgate.astype(gate.dtype), dup.astype(up.dtype)


swiglu.defvjp(_forward, _backward)


def gated(activation: str, gate: jax.Array, up: jax.Array) -> jax.Array:
  """`activation(gate) * up`."""
  return swiglu(gate, up) if activation == "silu" else ACTIVATIONS[activation](gate) * up


class MLP(nn.Module):
  """`[..., D]` -> `[..., D]` through `hidden` features."""

  hidden: int
  activation: str
  gated: bool
  use_bias: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    features = x.shape[-1]
    up = Linear(self.hidden, self.use_bias, name="up_proj")(x)
    if self.gated:
      gate = Linear(self.hidden, self.use_bias, name="gate_proj")(x)
      hidden = gated(self.activation, gate, up)
    else:
      hidden = ACTIVATIONS[self.activation](up)
    return Linear(features, self.use_bias, name="down_proj")(hidden)
