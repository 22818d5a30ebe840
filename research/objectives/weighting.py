"""How much each task of a mixture counts in the loss.

T tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from research.core import config, tree

Tree = Any


@dataclasses.dataclass(frozen=True)
class Terms:
  """Three arrays `[T]`: with `l` a task's sum of token losses and `w` of their weights, the loss is
  the sum over tasks of `factors * l + offsets * w`, divided by that of `shares * w`.
  """

  factors: jax.Array
  offsets: jax.Array
  shares: jax.Array


class Weighting(Protocol):
  """A way to weigh tasks."""

  def initial(self) -> Tree:
    """What it learns, before the first step."""

  def __call__(self, variables: Tree) -> Terms:
    """The terms, by what it has learnt."""


@dataclasses.dataclass(frozen=True)
class Fixed:
  """Tokens count by the weight of their task, as if the batch's weights held it."""

  weights: tuple[float, ...]

  def initial(self) -> Tree:
    return {}

  def __call__(self, variables: Tree) -> Terms:
    del variables
    weights = jnp.asarray(self.weights, jnp.float32)
    return Terms(weights, jnp.zeros_like(weights), weights)


@dataclasses.dataclass(frozen=True)
class Uncertainty:
  """Each task's loss over a temperature that is learnt with it.

  A token of a task adds `exp(-s) * loss + s / 2`, where `s` is the log of the task's variance: the
  likelihood of a softmax whose logits are scaled by `1 / variance` (Kendall et al. 2018,
  arXiv:1705.07115, eq. 8 to 10). It is least where the variance is twice the task's mean loss.
  """

  tasks: tuple[str, ...]
  start: float

  def initial(self) -> Tree:
    return {"log_variance": {name: jnp.float32(self.start) for name in self.tasks}}

  def __call__(self, variables: Tree) -> Terms:
    found = jnp.stack([variables["log_variance"][name] for name in self.tasks])
    return Terms(jnp.exp(-found), found / 2, jnp.ones_like(found))


def fixed(weights: Mapping[str, float], *, tasks: Sequence[str]) -> Fixed:
  """Weights a task, by name."""
  for name in weights:
    if name not in tasks:
      raise config.ConfigError(
        f"config.objective.weighting.weights: the data have no task {name!r}"
        f"{tree.nearest(name, tasks)}"
      )
  missing = [name for name in tasks if name not in weights]
  if missing or min(weights.values()) <= 0:
    raise config.ConfigError(
      "config.objective.weighting.weights: every task needs one above 0: "
      f"{', '.join(missing) or dict(weights)}"
    )
  return Fixed(tuple(float(weights[name]) for name in tasks))


def uncertainty(start: float = 0.0, *, tasks: Sequence[str]) -> Uncertainty:
  """By uncertainty, every log variance from `start`; see `Uncertainty`."""
  return Uncertainty(tuple(tasks), start)


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {"fixed": fixed, "uncertainty": uncertainty}


def build(section: Mapping[str, Any], tasks: Sequence[str]) -> Weighting:
  """The weighting that `objective.weighting` names.

  Raises:
    ConfigError: it does not fit the tasks, or there are none.
  """
  if not tasks:
    raise config.ConfigError(
      "config.objective.weighting weighs the tasks of a mixture, and the data name none: "
      "set `tasks` of the mixture"
    )
  return config.call(WEIGHTINGS, section, tasks=tasks)


@dataclasses.dataclass(frozen=True)
class LearningLoss:
  """A loss that learns something itself: the collection `objective` of its variables.

  initial: makes them; it raises what is wrong with the config in training.
  """

  loss: Callable[..., Any]
  initial: Callable[[], Tree]

  def __call__(self, *args: Any) -> Any:
    return self.loss(*args)
