"""Learning rates as functions of the number of updates so far.

Every schedule is a function `(learning_rate, total_steps, **settings) -> (step -> rate)`, where
`step` counts from 0 and may be traced. A duration is given in steps (`warmup_steps`) or as a
share of the run (`warmup_fraction`), not both. A `_ratio` is a rate relative to `learning_rate`.

Warm-up, cosine, linear and warm-up-stable-decay follow the formulas of Hugging Face transformers
(`get_cosine_with_min_lr_schedule_with_warmup`, `get_linear_...`, `get_wsd_schedule`): the rate of
step 0 is 0 when there is a warm-up.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array | int], jax.Array]


def constant(
  learning_rate: float,
  total_steps: int,
  *,
  warmup_steps: int | None = None,
  warmup_fraction: float | None = None,
) -> Schedule:
  """A linear warm-up, then `learning_rate` for good."""
  warmup = _duration("warmup", warmup_steps, warmup_fraction, total_steps)
  return lambda step: learning_rate * _rising(step, warmup)


def linear(
  learning_rate: float,
  total_steps: int,
  *,
  warmup_steps: int | None = None,
  warmup_fraction: float | None = None,
  final_ratio: float = 0.0,
) -> Schedule:
  """A linear warm-up, then a straight line to `final_ratio` at `total_steps`."""
  warmup = _duration("warmup", warmup_steps, warmup_fraction, total_steps)

  def rate(step: jax.Array | int) -> jax.Array:
    falling = 1 - (1 - final_ratio) * _progress(step, warmup, total_steps)
    return learning_rate * _rising(step, warmup) * falling

  return rate


def warmup_cosine(
  learning_rate: float,
  total_steps: int,
  *,
  warmup_steps: int | None = None,
  warmup_fraction: float | None = None,
  final_ratio: float = 0.0,
) -> Schedule:
  """A linear warm-up, then half a cosine down to `final_ratio` at `total_steps`."""
  warmup = _duration("warmup", warmup_steps, warmup_fraction, total_steps)

  def rate(step: jax.Array | int) -> jax.Array:
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, warmup, total_steps)))
    return learning_rate * _rising(step, warmup) * (final_ratio + (1 - final_ratio) * cosine)

  return rate


def wsd(
  learning_rate: float,
  total_steps: int,
  *,
  warmup_steps: int | None = None,
  warmup_fraction: float | None = None,
  decay_steps: int | None = None,
  decay_fraction: float | None = None,
  final_ratio: float = 0.0,
) -> Schedule:
  """Warm-up, a stable stretch, then a straight line to `final_ratio` (arXiv:2404.06395).

  The decay is the last `decay_steps` or `decay_fraction` of the run; a fifth when neither is set.
  """
  if decay_steps is None and decay_fraction is None:
    decay_fraction = 0.2
  warmup = _duration("warmup", warmup_steps, warmup_fraction, total_steps)
  decay = _duration("decay", decay_steps, decay_fraction, total_steps)
  if warmup + decay > total_steps:
    raise ValueError(
      f"warm-up ({warmup} steps) and decay ({decay}) are longer than the run ({total_steps})"
    )

  def rate(step: jax.Array | int) -> jax.Array:
    falling = 1 - (1 - final_ratio) * _progress(step, total_steps - decay, total_steps)
    return learning_rate * _rising(step, warmup) * falling

  return rate


def three_phase(
  learning_rate: float,
  total_steps: int,
  *,
  first_fraction: float = 0.2,
  first_ratio: float = 0.01,
  final_fraction: float = 0.2,
  final_ratio: float = 0.1,
) -> Schedule:
  """A gentle start, the working rate, a decay: 20 %, 60 % and 20 % of the run.

  The first phase stays at `first_ratio` so that a pretrained model is not thrown off, the second
  at `learning_rate`, the third falls on a straight line to `final_ratio`.
  """
  first = _duration("first", None, first_fraction, total_steps)
  final = _duration("final", None, final_fraction, total_steps)
  if first + final > total_steps:
    raise ValueError(f"first_fraction and final_fraction add up to more than 1 ({total_steps=})")

  def rate(step: jax.Array | int) -> jax.Array:
    falling = 1 - (1 - final_ratio) * _progress(step, total_steps - final, total_steps)
    return learning_rate * jnp.where(jnp.asarray(step) < first, first_ratio, falling)

  return rate


SCHEDULES: dict[str, Callable[..., Schedule]] = {
  "constant": constant,
  "linear": linear,
  "three_phase": three_phase,
  "warmup_cosine": warmup_cosine,
  "wsd": wsd,
}


def _duration(name: str, steps: int | None, fraction: float | None, total_steps: int) -> int:
  """The steps that `NAME_steps` or `NAME_fraction` stand for; 0 when neither is set."""
  if steps is not None and fraction is not None:
    raise ValueError(f"set {name}_steps or {name}_fraction, not both")
  if fraction is not None:
    if not 0 <= fraction <= 1:
      raise ValueError(f"{name}_fraction is {fraction}; a fraction lies between 0 and 1")
    return round(fraction * total_steps)
  if steps is not None and not 0 <= steps <= total_steps:
    raise ValueError(f"{name}_steps is {steps}, but the run has {total_steps} steps")
  return steps or 0


def _rising(step: jax.Array | int, warmup: int) -> jax.Array:
  """0 at step 0, 1 from `warmup` on."""
  return jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / warmup) if warmup else jnp.ones(())


def _progress(step: jax.Array | int, start: int, end: int) -> jax.Array:
  """0 until `start`, 1 from `end` on, a straight line between."""
  return jnp.clip((jnp.asarray(step, jnp.float32) - start) / max(1, end - start), 0.0, 1.0)
