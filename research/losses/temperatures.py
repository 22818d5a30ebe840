"""Temperatures of distillation as functions of the step, soft at first and sharp at the end.

Every schedule is a function `(total_steps, **settings) -> (step -> temperature)`; `step` counts
from 0 and may be traced. Learning rates have schedules of their own (`optim.schedules`), which
begin by a warm-up from 0: no temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Temperature = Callable[[jax.Array | int], jax.Array]


def constant(total_steps: int, *, value: float = 1.0) -> Temperature:
  """`value` at every step."""
  del total_steps
  _check("value", value)
  return lambda step: jnp.full(jnp.shape(step), value, jnp.float32)


def linear(total_steps: int, *, start: float, end: float = 1.0) -> Temperature:
  """A straight line from `start` at step 0 to `end` at the last step."""
  _check("start", start)
  _check("end", end)
  return lambda step: start + (end - start) * _progress(step, total_steps)


def cosine(total_steps: int, *, start: float, end: float = 1.0) -> Temperature:
  """Half a cosine from `start` at step 0 to `end` at the last step."""
  _check("start", start)
  _check("end", end)

  def temperature(step: jax.Array | int) -> jax.Array:
    return end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, total_steps)))

  return temperature


def stepwise(total_steps: int, *, values: Sequence[float]) -> Temperature:
  """Each of `values` for an equal share of the run, in turn: 8, 4, 2, 1.

  Raises:
    ValueError: there are no values, or more than steps, or one is not above 0.
  """
  if not 0 < len(values) <= total_steps:
    raise ValueError(f"values has {len(values)} temperatures for a run of {total_steps} steps")
  for number, value in enumerate(values):
    _check(f"values[{number}]", value)

  def temperature(step: jax.Array | int) -> jax.Array:
    number = jnp.asarray(step) * len(values) // total_steps
    return jnp.asarray(values, jnp.float32)[jnp.clip(number, 0, len(values) - 1)]

  return temperature


TEMPERATURES: dict[str, Callable[..., Temperature]] = {
  "constant": constant,
  "cosine": cosine,
  "linear": linear,
  "stepwise": stepwise,
}


def _check(name: str, temperature: float) -> None:
  if not temperature > 0:
    raise ValueError(f"{name} is {temperature}; a temperature is above 0")


def _progress(step: jax.Array | int, total_steps: int) -> jax.Array:
  """0 at step 0, 1 at the last step and after it."""
  return jnp.clip(jnp.asarray(step, jnp.float32) / max(1, total_steps - 1), 0.0, 1.0)
