"""What a run leaves: the files of its adapters, or a model with adapters merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import models, peft, quant
from research.core import matrix, tree
from research.loop import learner as learner_lib
from research.models import scored


def beside_adapters(
  learner: learner_lib.Learner, modules: Mapping[str, Any]
) -> frozenset[str] | None:
  """Parameters that leave in the files of the run's adapters; None if those leave in no files.

  PEFT's files have no place for a LoRA of each expert, say, or for a norm that was trained beside:
  then the run's result is a model with adapters merged.

  Raises:
    ValueError: adapters can neither be in files nor be merged.
  """
  each = _alone(learner.variables["adapters"], learner.starts, learner.tasks)
  params = learner.variables["params"]
  trained = frozenset(
    path for path, leaf in matrix.flatten(params).items() if learner.trains(f"params/{path}", leaf)
  )
  adapted = {path for one in each.values() for path, _ in peft.sites(one)}
  reason: str | None = "more than adapters trains"
  # Of new heads PEFT's files have a place for a score; a student's base is no checkpoint.
  placed = learner.fresh <= {scored.KERNEL} and not learner.cut
  if adapted and placed and not adapted & trained and not (learner.tasks and trained):
    files = [peft.with_saved(one, params, trained) for one in each.values()]
    reason = next(filter(None, (peft.obstacle(one, modules) for one in files)), None)
  if reason is None:
    return trained
  if learner.tasks:
    raise ValueError(f"adapters of each_task leave in files of their own, and cannot: {reason}")
  peft.require_mergeable(each[""])
  return None


def exporter(
  source: str,
  learner: learner_lib.Learner,
  modules: Mapping[str, Any],
  beside: frozenset[str] | None,
) -> Callable[[Path, dict[str, Any]], None]:
  """`Problem.export`, for what `beside_adapters` told of the run.

  What is in few bits, or trained on their grid, leaves as its codes, unless an adapter is merged
  into it.

  Args:
    source: the base, as the config names it.
    modules: see `models.scored.modules`.
    beside: parameters that leave with the adapters; None is a model with adapters merged.
  """
  # Not the learner, whose variables would be kept.
  model, tokenizer, starts, tasks = (
    learner.model,
    learner.tokenizer,
    learner.starts,
    learner.tasks,
  )

  def export(directory: Path, variables: dict[str, Any]) -> None:
    if beside is not None:
      for name, adapters in _alone(variables["adapters"], starts, tasks).items():
        peft.save(
          directory / "adapter" / name,
          peft.with_saved(adapters, variables["params"], beside),
          modules,
          base_model=source,
          task_type=scored.task_type(model.config),
        )
      return
    params, to = _as_they_act(variables["params"], variables["adapters"]), directory / "model"
    if any(map(matrix.is_matrix, matrix.flatten(params).values())):
      models.save_quantized(to, model, params, tokenizer)
    else:
      models.save(to, model, params, tokenizer)

  return export


def _as_they_act(params: Any, adapters: Any) -> Any:
  """`params` to be saved, with `adapters` merged; of NumPy arrays, as both are.

  One parameter at a time is computed with, where JAX computes.
  """
  if not adapters:
    return params

  def acting(leaf: Any) -> Any:
    if matrix.is_matrix(leaf):
      leaf = jax.device_get(quant.dequantize(jax.tree.map(jnp.asarray, leaf)))
    # A frozen base has the activations' type, in which much of what was learnt would be lost.
    return leaf.astype(np.float32)

  params = jax.tree.map(acting, params, is_leaf=matrix.is_matrix)
  flat = matrix.flatten(params)
  for path, merged in peft.merged(params, jax.tree.map(jnp.asarray, adapters)):
    flat[path] = jax.device_get(merged)
  return tree.unflatten(flat)


def _alone(adapters: Any, starts: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
  """The adapters that a run exports, by directory within `adapter/`."""
  adapters = peft.plain(adapters, starts)
  if tasks:
    return {name: peft.taken(adapters, slot) for slot, name in enumerate(tasks)}
  return {"": adapters}
