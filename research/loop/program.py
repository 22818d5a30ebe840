"""The step of a run as a program: its optimizer, where its arrays lie, and what is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from research import peft
from research.core import config as config_lib
from research.core import sharding, tree
from research.loop import meta, state, step, throughput
from research.loop.problem import Problem
from research.optim import build as optim
from research.optim.schedules import Schedule

REPLICATED_AT_MOST = 0.02  # of the parameters' bytes, which is told where there is more


@dataclasses.dataclass(frozen=True)
class Arranged:
  """The variables of a problem, as its step takes them.

  trainable: those that train, None elsewhere, as they are before the first step.
  frozen: the others, where they lie on the mesh.
  shapes, shardings: of the whole state.
  """

  optimizer: optax.GradientTransformation
  schedule: Schedule
  trainable: Any
  frozen: Any
  shapes: state.TrainState
  shardings: state.TrainState
  mesh: jax.sharding.Mesh


def arrange(
  config: config_lib.Config,
  task: Problem,
  mesh: jax.sharding.Mesh,
  put: Callable[[Any, Any], Any] = jax.device_put,
) -> Arranged:
  """Splits, shards and places the variables of `task`.

  Args:
    put: `(tree, shardings)`, puts what is frozen where it is to lie.

  Raises:
    ConfigError: the optimizer cannot be, or the mesh does not divide a parameter.
  """
  trainable, frozen = tree.partition(task.variables, task.trains)
  with config_lib.blaming("adapters"):
    around = peft.allocation(trainable, config.train.steps)
  optimizer, schedule = optim.build(config.optimizer, trainable, config.train.steps, around)
  shapes = state.abstract(trainable, optimizer)
  with config_lib.blaming("mesh"):
    shardings = sharding.shardings(mesh, shapes)
    frozen = put(frozen, sharding.shardings(mesh, frozen))
  frozen = step.arrange(task.model, trainable, frozen, mesh, task.teacher)
  return Arranged(optimizer, schedule, trainable, frozen, shapes, shardings, mesh)


def program(
  config: config_lib.Config, task: Problem, arranged: Arranged, free: bool = False
) -> step.Program:
  """The step on what `arrange` gave. free: see `step.make_step`."""
  made = step.make_step(
    task.model,
    task.objective,
    arranged.optimizer,
    arranged.schedule,
    accumulate_steps=config.train.accumulate_steps,
    seed=config.seed,
    meta=meta.build(config.train.meta),
    rows_per_example=task.rows_per_example,
    free=free,
    layer_gradients=config.log.gradients,
  )
  mesh = arranged.mesh
  # Metrics are whole on every device, so that each process can read them.
  out = (arranged.shardings, sharding.replicated(mesh))
  return step.Program(made, out, mesh.devices.flat[0].platform)


def flops_per_token(task: Problem, trainable: Any) -> Callable[[float], float]:
  """`throughput.train_flops_per_token` of a problem."""
  return throughput.train_flops_per_token(
    task.forward_flops, task.variables, trainable, task.active, task.teacher, task.forward_passes
  )


def replicated(arranged: Arranged) -> float:
  """The share of the parameters' bytes that every device holds whole, though the mesh splits them.

  0 on a mesh that splits no parameters.
  """
  mesh = arranged.mesh
  if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
    return 0.0
  leaves = [
    *zip(
      jax.tree.leaves(arranged.shapes.trainable),
      jax.tree.leaves(arranged.shardings.trainable),
      strict=True,
    ),
    *((leaf, leaf.sharding) for leaf in jax.tree.leaves(arranged.frozen)),
  ]
  total = sum(leaf.size * leaf.dtype.itemsize for leaf, _ in leaves)
  whole = sum(leaf.size * leaf.dtype.itemsize for leaf, s in leaves if s.is_fully_replicated)
  return whole / total
