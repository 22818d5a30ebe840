"""Losses of models whose adapters go by the task of a token."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from research import peft
from research.core import tree
from research.objectives.tokens import Loss


def by_task(loss: Loss, names: Sequence[str], tasks: Sequence[str]) -> Loss:
  """`loss` of the batch with the banks of adapters told each token's slot, by its task.

  A packed row has its documents' adapters, and a gradient goes into the slot of its token's task.

  Args:
    loss: an objective.
    names: of the slots.
    tasks: of the numbers in the batch's `task`.

  Raises:
    ValueError: the data name no tasks, or one that has no adapter.
  """
  if not tasks:
    told = ", ".join(names)
    raise ValueError(f"adapters for each_task need a mixture whose tasks are named: {told}")
  for name in tasks:
    if name not in names:
      near = tree.nearest(name, names) or f"; there are {', '.join(names)}"
      raise ValueError(f"the task {name!r} has no adapter in each_task{near}")
  slots = [names.index(name) for name in tasks]

  def routed(model: Any, variables: Any, batch: Any, rng: Any, step: Any) -> Any:
    which = jnp.asarray(slots, jnp.int32)[batch["task"]]  # [B, S]
    adapters = peft.route(variables["adapters"], which)
    return loss(model, {**variables, "adapters": adapters}, batch, rng, step)

  return routed
