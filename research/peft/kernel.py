"""What methods at a projection's kernel share."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

EXPERTS = "/experts/"


def require_matrix(method: str, path: str, kernel: Any, *, experts: bool = False) -> None:
  """Raises ValueError unless `path` is that of a projection's kernel, maybe stacked by layers.

  Args:
    method: its name, for the message.
    path: as in `layers/attention/q_proj/kernel`.
    kernel: `[in, out]` or `[layers, in, out]`, or its shape.
    experts: whether `[layers, experts, in, out]` will do, too.
  """
  if EXPERTS in path and not experts:
    raise ValueError(f"{method} is not for the experts of a mixture, as at {path!r}; LoRA is")
  is_kernel = path.rpartition("/")[2] == "kernel"
  if not is_kernel or kernel.ndim not in (2, 3) and not (kernel.ndim == 4 and EXPERTS in path):
    raise ValueError(
      f"{method} needs a matrix, a projection's kernel; {path!r} {tuple(kernel.shape)} is none"
    )


def require_numbers(method: str, path: str, kernel: Any) -> None:
  """Raises ValueError if `kernel` is only a shape."""
  if isinstance(kernel, jax.ShapeDtypeStruct):
    raise ValueError(f"{method} begins from the numbers of {path!r}, of which the shape was given")


def dropped(x: jax.Array, rate: float, rng: jax.Array | None) -> jax.Array:
  """`x` with a share of its numbers dropped and the others grown by as much, if there is `rng`."""
  if not rate or rng is None:
    return x
  keep = jax.random.bernoulli(rng, 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def scaled(value: jax.Array, gain: jax.Array, kind: Any) -> jax.Array:
  """`value [..., n] * gain [n]`, both float32.

  For the gradient of `gain` it keeps `value` in the type `kind`, that of the activations; JAX's own
  derivative would keep it in float32, the largest array of a training step.
  """
  del kind
  return value * gain


def _forward(value, gain, kind):
  return value * gain, (value.astype(kind), gain)


def _backward(kind, residuals, g):
  del kind
  value, gain = residuals
  rows = tuple(range(value.ndim - 1))
  return g * gain, jnp.sum(g * value.astype(jnp.float32), axis=rows).astype(gain.dtype)


scaled.defvjp(_forward, _backward)
