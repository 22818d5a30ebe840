"""A run without its numbers: its variables and batches as shapes, by the loop's own functions.

B rows of the batch, S tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from research import models, objectives, peft
from research.core import config as config_lib
from research.core import sharding
from research.data import packing, settings
from research.data.answers import KINDS
from research.data.examples import Example
from research.loop import bound as bound_lib
from research.loop import learner as learner_lib
from research.loop import rollouts
from research.loop.problem import Problem
from research.loop.subject import Subject
from research.objectives import answers as answers_lib
from research.objectives.policy import ADVANTAGES, OLD, RETURNS, VALUES

# What rows of each objective are learnt by, if not `targets` (`packing.assemble`).
_FORMS: dict[str, tuple[str, ...]] = {
  "masked": ("labels",),
  "classification": ("labels",),
  "embedding": ("roles",),
}


def without_numbers(config: config_lib.Config) -> config_lib.Config:
  """The config with what depends on numbers taken out.

  Adapters that begin as a part of the base, by first batches or by rounding (`start`) are then
  plain: the step is of the same shapes.
  """
  values = config.to_dict()
  for rule in values["adapters"]:
    for key in ("start", "rho", "batches"):
      rule.pop(key, None)
  return config_lib.Config(values)


def problem(config: config_lib.Config, numbers: bool = False) -> Problem:
  """The problem of a config, as `loop.problem.assemble` makes it, without data and export.

  Args:
    config: see `without_numbers`.
    numbers: variables are arrays of random numbers, in place of `ShapeDtypeStruct`s.

  Raises:
    ConfigError: the config cannot be, or needs what is not known without its data.
  """
  if config.get("stages"):
    raise config_lib.ConfigError("config.stages are several runs; plan a config of one of them")
  held: dict[str, Any] = {}
  tasks = _tasks(config)

  def variables() -> dict[str, Any]:
    learner = learner_lib.build(config, models.invent)
    bound = bound_lib.bind(config, learner, tasks, {}, _teacher)
    held.update(learner=learner, bound=bound)
    return bound.variables

  made = variables() if numbers else jax.eval_shape(variables)
  learner, bound = held["learner"], held["bound"]
  answers = objectives.ANSWERS.get(config.objective.get("name", ""))
  return Problem(
    model=learner.model,
    tokenizer=None,
    variables=made,
    trains=learner.trains,
    objective=bound.objective,
    batches=_NoBatches(),
    evaluators=(),
    forward_flops=learner.model.config.flops_per_token,
    export=lambda directory, variables: None,
    active=learner.model.config.active,
    rows_per_example=rollouts.rows_per_example(config, answers),
    teacher=bound.beside,
    forward_passes=bound.forward_passes,
  )


class _NoBatches:
  """Of a problem that is not trained on."""

  def __next__(self) -> dict[str, Any]:
    raise TypeError("a plan has no data")

  def get_state(self) -> dict[str, Any]:
    return {}

  def set_state(self, state: dict[str, Any]) -> None:
    del state

  def description(self) -> str:
    return ""


def _teacher(source: str, dtype: str) -> Subject:
  model, params, _ = models.invent(source, dtype=jax.numpy.dtype(dtype))
  return Subject(source, model, {"params": params}, None, source)


def _tasks(config: config_lib.Config) -> tuple[str, ...]:
  return (
    tuple(config.data.train.source.get("tasks", ()))
    if (config.data.train.source.get("name") == "mixture")
    else ()
  )


def batch(
  config: config_lib.Config, task: Problem, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """The largest batch of the config's data, `[B, S]` shapes over the mesh (docs/architecture.md).

  Raises:
    ConfigError: the data section cannot be, or B or S do not divide over the mesh.
  """
  data, name = config.data.train, config.objective.name
  answers = objectives.ANSWERS.get(name)
  pairs = isinstance(task.model, models.EncoderDecoder)
  virtual_tokens = len(peft.virtual_ids(task.variables["adapters"]))
  with config_lib.blaming("data.train"):
    settings.require(data, pairs, virtual_tokens, answers)
    if data.corruption:
      raise ValueError("a corruption makes columns by its tokenizer; plan with corruption={}")
  also = ["task"] if _tasks(config) else []
  form = _FORMS.get(name, ("targets",))
  if name == "classification" and task.model.config.token_types:
    form = ("labels", "types")
  length = (data.target_length or data.length) if pairs else data.length
  rows: list[list[Example]] = [[]]
  one = packing.assemble(rows, length, 0, also, form, config.teacher.keep_tokens)
  if pairs:
    one |= packing.assemble_sources(rows, data.length, 0)
  if answers:
    one |= packing.told(rows, KINDS[answers].told)
    if answers == "prompts":
      one |= _of_policy(config, task.objective, one["weights"])
    if config.objective.get("reference") == "kept":
      one[answers_lib.KEPT] = one["row"].astype("float32")
  count = config.train.batch_size * task.rows_per_example
  return {key: _placed(key, array, count, mesh) for key, array in one.items()}


def _of_policy(config: config_lib.Config, objective: Any, weights: Any) -> dict[str, Any]:
  """What batches of a policy's answers have beside those of prompts, each like `weights`."""
  with config_lib.blaming("train.rollout"):
    several = rollouts.settings_of(config.train.rollout).steps > 1
  names = [ADVANTAGES] + [OLD] * several
  names += [VALUES, RETURNS] if objective.width else []
  return dict.fromkeys(names, weights)


def _placed(key: str, array: Any, count: int, mesh: Any) -> jax.ShapeDtypeStruct:
  place = sharding.batch_sharding(mesh, array.ndim)
  shape = (count, *array.shape[1:])
  try:
    place.shard_shape(shape)
  except ValueError as error:
    raise config_lib.ConfigError(
      f"config.train.batch_size: {key} {shape} does not divide over the mesh {dict(mesh.shape)}"
    ) from error
  return jax.ShapeDtypeStruct(shape, array.dtype, sharding=place)


def tokens(batch: Mapping[str, Any]) -> tuple[int, int]:
  """The tokens of a batch, and of a row."""
  rows, length = batch["tokens"].shape
  sources = batch["source_tokens"].shape[1] if "source_tokens" in batch else 0
  return rows * (length + sources), length


def put(shapes: Any, shardings: Any) -> Any:
  """`jax.device_put` of shapes."""
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    shapes,
    shardings,
  )


def changed(config: config_lib.Config, changes: Mapping[str, Any]) -> config_lib.Config:
  """The config with other values at dotted keys."""
  values = config.to_dict()
  for key, value in changes.items():
    *parents, last = key.split(".")
    section = values
    for parent in parents:
      section = section[parent]
    section[last] = value
  return config_lib.Config(values)
