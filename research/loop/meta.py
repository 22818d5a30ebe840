"""Learning where to start from: first-order MAML and Reptile, as ways to take a batch's gradient.

A batch is groups of `rows_per_task` rows, each of one task (`data.windows`). For each group the
trainable parameters take a few steps of gradient descent of their own, forgotten afterwards; the
gradient that the optimizer gets tells from where those steps would have gone better. What trains
(all, or adapters alone) is what adapts, save what the objective learns. Groups are worked on one
after the other, so that memory holds one adapted copy, and add up as all else does: by their
tokens.

K steps of the inner loop, r rows of one of them, S sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from research.core import config as config_lib
from research.core import rng as rng_lib
from research.loop.slices import Gradients, cut, summed


class Meta(Protocol):
  """A way to learn an initialization."""

  @property
  def rows_per_task(self) -> int: ...

  def of_task(
    self, gradients: Gradients, trainable: Any, frozen: Any, rows: Any, rng: Any, step: Any
  ) -> Any:
    """As `gradients` does, of a group's `rows`."""


@dataclasses.dataclass(frozen=True)
class Maml:
  """First-order MAML (Finn et al. 2017, arXiv:1703.03400, section 5.2).

  Adapts on the first `support_rows` of a task, all of them in each step; its gradient is the one at
  the adapted parameters, of the loss on the other rows. That loss is the metric `loss`.
  """

  rows_per_task: int
  support_rows: int
  inner_steps: int
  inner_learning_rate: float

  def of_task(
    self, gradients: Gradients, trainable: Any, frozen: Any, rows: Any, rng: Any, step: Any
  ) -> Any:
    support = {
      name: jnp.broadcast_to(
        array[: self.support_rows], (self.inner_steps, self.support_rows, *array.shape[1:])
      )
      for name, array in rows.items()
    }
    query = {name: array[self.support_rows :] for name, array in rows.items()}
    rate = self.inner_learning_rate
    adapted, _, inner = adapt(gradients, trainable, frozen, support, rng, step, rate)
    sums, found = gradients(adapted, frozen, query, rng_lib.at(rng, self.inner_steps), step)
    return {**sums, **_ends(inner)}, found


@dataclasses.dataclass(frozen=True)
class Reptile:
  """Reptile (Nichol et al. 2018, arXiv:1803.02999, algorithm 2).

  Each step of the inner loop has its own share of a task's rows; the gradient is how far the steps
  went, over their learning rate. One step makes it training on all tasks jointly. The metric `loss`
  is that of every inner step, before it.
  """

  rows_per_task: int
  inner_steps: int
  inner_learning_rate: float

  def of_task(
    self, gradients: Gradients, trainable: Any, frozen: Any, rows: Any, rng: Any, step: Any
  ) -> Any:
    shares = {name: cut(array, self.inner_steps) for name, array in rows.items()}
    rate = self.inner_learning_rate
    _, way, inner = adapt(gradients, trainable, frozen, shares, rng, step, rate)
    sums = jax.tree.map(lambda each: jnp.sum(each, axis=0), inner)
    weight = sums["loss"][1]  # by which the step will divide
    return {**sums, **_ends(inner)}, jax.tree.map(lambda g: g * weight, way)


def adapt(
  gradients: Gradients,
  trainable: Any,
  frozen: Any,
  batches: Any,
  rng: Any,
  step: Any,
  learning_rate: float,
) -> tuple[Any, Any, Any]:
  """Gradient descent on one batch after another.

  Args:
    batches: arrays `[K, r, S]`.
    learning_rate: of the mean loss of each batch.

  Returns:
    The adapted parameters; the sum of the mean gradients that led there; and the sums of each step
    before it was made, `[K]`.
  """

  def moved(way: Any) -> Any:
    new = jax.tree.map(lambda value, g: value - learning_rate * g, trainable, way)
    # What an objective learns is about all tasks together: none has its own.
    return {**new, **{name: kept for name, kept in trainable.items() if name == "objective"}}

  def descend(way: Any, batch_and_index: Any) -> tuple[Any, Any]:
    batch, index = batch_and_index
    sums, found = gradients(moved(way), frozen, batch, rng_lib.at(rng, index), step)
    weight = sums["loss"][1]
    divisor = jnp.where(weight == 0, 1.0, weight)
    return jax.tree.map(lambda total, g: total + g / divisor, way, found), sums

  count = len(jax.tree.leaves(batches)[0])
  start = jax.tree.map(jnp.zeros_like, trainable)
  steps = (batches, jnp.arange(count, dtype=jnp.int32))
  way, sums = jax.lax.scan(descend, start, steps)
  return moved(way), way, sums


def maml(
  rows_per_task: int, support_rows: int, inner_learning_rate: float, inner_steps: int = 1
) -> Maml:
  """First-order MAML; see `Maml`."""
  _check(inner_steps, inner_learning_rate)
  if not 1 <= support_rows < rows_per_task:
    raise ValueError(
      f"of {rows_per_task} rows a task, 1 to {rows_per_task - 1} can support, not {support_rows}"
    )
  return Maml(rows_per_task, support_rows, inner_steps, inner_learning_rate)


def reptile(rows_per_task: int, inner_learning_rate: float, inner_steps: int = 2) -> Reptile:
  """Reptile; see `Reptile`."""
  _check(inner_steps, inner_learning_rate)
  if rows_per_task < 1 or rows_per_task % inner_steps:
    raise ValueError(f"{rows_per_task} rows a task do not divide among {inner_steps} inner steps")
  return Reptile(rows_per_task, inner_steps, inner_learning_rate)


METHODS: dict[str, Callable[..., Meta]] = {"maml": maml, "reptile": reptile}


def build(section: Mapping[str, Any]) -> Meta | None:
  """What `train.meta` names; None if it is empty.

  Raises:
    ConfigError: an unknown name or argument, or values that do not fit.
  """
  if not section:
    return None
  with config_lib.blaming("train.meta"):
    return config_lib.call(METHODS, section)


def by_tasks(meta: Meta, gradients: Gradients) -> Gradients:
  """The gradients of a batch of tasks, from those of a batch."""

  def of_tasks(trainable: Any, frozen: Any, batch: Any, rng: Any, step: Any) -> Any:
    tasks = {
      name: rows.reshape(-1, meta.rows_per_task, *rows.shape[1:]) for name, rows in batch.items()
    }

    def of_task(*args: Any) -> Any:
      return meta.of_task(gradients, *args)

    return summed(of_task, trainable, frozen, tasks, rng, step)

  return of_tasks


def _ends(inner: Any) -> dict[str, Any]:
  """The loss before the first and before the last step of the inner loop."""
  total, weight = inner["loss"]
  return {
    "inner/first_loss": (total[0], weight[0]),
    "inner/last_loss": (total[-1], weight[-1]),
  }


def _check(inner_steps: int, inner_learning_rate: float) -> None:
  if inner_steps < 1 or inner_learning_rate <= 0:
    raise ValueError(
      f"inner_steps {inner_steps} starts at 1, inner_learning_rate {inner_learning_rate} above 0"
    )
