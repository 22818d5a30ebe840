"""What a config asks to be trained: the model, its adapters, the loss, the data, the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from research import evals, models, objectives, peft, quant
from research.core import config as config_lib
from research.core import distributed, sharding
from research.data import pipeline
from research.evals import Evaluator, Result
from research.loop import bound as bound_lib
from research.loop import eva, kept, on_policy, result, rollouts
from research.loop import held_out as held_out_lib
from research.loop import learner as learner_lib
from research.loop.step import Objective
from research.models import scored

# The collections of variables that are the model's, and not a teacher's or a reference's.
_OF_MODEL = ("params", "adapters", "objective")


class Batches(Protocol):
  """Endless batches of numpy arrays, and where in the data they stand."""

  def __next__(self) -> dict[str, np.ndarray]: ...

  def get_state(self) -> dict[str, Any]:
    """What `set_state` needs to go on with the batch after the last one; JSON."""

  def set_state(self, state: dict[str, Any]) -> None: ...

  def description(self) -> str:
    """What the data are, for a person."""


@dataclasses.dataclass
class Problem:
  """Everything that the loop drives and does not know.

  variables: `{"params": ..., "adapters": ...}`, `"objective"` where the loss learns too, and the
    frozen `"teacher"`, variables of another model, and `"reference"`, a copy of this one, where it
    reads them.
  trains: says of a path of `variables` and its leaf whether the optimizer changes it.
  batches: this process's share of each batch.
  evaluators: `(model, variables, tokenizer) -> Result`.
  forward_flops: FLOPs of the base's forward pass, a token, in rows of a length.
  active: the share of the parameter at a path, such as all experts, that one token meets.
  rows_per_example: neighbouring rows of a batch that belong together.
  export: `(directory, variables)` writes what was trained for other tools to load; of NumPy arrays,
    those that trained on a grid as `quant.hold` gives them, on the first process, within
    `sharding.on_host`.
  notes: what a person should know before the run, a line each.
  teacher: the model of the variables `"teacher"`.
  forward_passes: of the base in each step beside the loss's own, as of a reference.
  rewrite: `(step, variables, batch) -> batch` of this process, before it is put on devices;
    `variables` is a function that gives them.
  figures: what of the data changes on the way, as it is at a step, from 0, for the run's metrics.
  """

  model: Any
  tokenizer: Any
  variables: dict[str, Any]
  trains: Callable[[str, Any], bool]
  objective: Objective
  batches: Batches
  evaluators: Sequence[Evaluator]
  forward_flops: Callable[[float], float]
  export: Callable[[Path, dict[str, Any]], None]
  active: Callable[[str], float] = lambda path: 1.0
  rows_per_example: int = 1
  notes: Sequence[str] = ()
  teacher: Any = None
  forward_passes: int = 0
  rewrite: Callable[..., dict[str, np.ndarray]] | None = None
  figures: Callable[[int], Mapping[str, float]] = lambda step: {}


def assemble(config: config_lib.Config) -> Problem:
  """The problem that the config's sections of model, teacher, objective, data and eval describe.

  A head that the checkpoint lacks is initialized by the seed and trains, whatever `trainable` says.

  Raises:
    ConfigError: one of those sections cannot be; the message names it.
  """
  with distributed.alike("the model") as told:
    learner = learner_lib.build(config)
    told |= {"config": repr(learner.model.config), "tokenizer": learner.tokenizer.backend.to_str}
  model, variables = learner.model, learner.variables
  modules = scored.modules(model.config)
  with config_lib.blaming("adapters"):
    beside = result.beside_adapters(learner, modules)
  with config_lib.blaming("mesh"):
    mesh = sharding.make_mesh(config.mesh)
    share = sharding.share_of_process(mesh)
  rows = _rows(config, learner)
  with config_lib.blaming("data.train"):
    stream = _train_batches(config, learner, rows, share)
  tasks = stream.tasks
  with config_lib.blaming("adapters"):
    variables["adapters"] = eva.begun(model, variables, stream, mesh)
  bound = bound_lib.bind(config, learner, tasks, rows)
  with config_lib.blaming("objective"):
    batches = bound.reference.of_batches(stream, config.data.train)
  rewrite: Any = on_policy.build(config, model, learner.tokenizer, bound.teacher is not None, mesh)
  written = rollouts.build(config, bound.objective, model, learner.tokenizer, batches, mesh)
  if written:
    batches, rewrite = written, written.rewrite
  with config_lib.blaming("adapters"):
    _check_tasks(config, learner.tasks, tasks, isinstance(model, models.EncoderDecoder))
  evaluators: list[Evaluator] = []
  if config.data.eval:
    with config_lib.blaming("data.eval"):
      evaluators.append(_held_out(config, learner, bound, rows, share, mesh))
  with config_lib.blaming("eval.evaluators"):
    built = evals.build([section.take() for section in config.eval.evaluators])
    evaluators += [_of_model(evaluator) for evaluator in built]

  teacher = bound.teacher
  return Problem(
    model=model,
    tokenizer=learner.tokenizer,
    variables=bound.variables,
    trains=learner.trains,
    objective=bound.objective,
    batches=batches,
    evaluators=evaluators,
    forward_flops=model.config.flops_per_token,
    export=result.exporter(config.model.source, learner, modules, beside),
    active=model.config.active,
    rows_per_example=rollouts.rows_per_example(config, rows["answers"]),
    notes=_notes(learner, merges=beside is None) + ([teacher.note()] if teacher else []),
    teacher=bound.beside,
    forward_passes=bound.forward_passes,
    rewrite=rewrite,
    figures=stream.figures,
  )


def _rows(config: config_lib.Config, learner: learner_lib.Learner) -> dict[str, Any]:
  """How rows are read for this model, its adapters and its objective; see `pipeline`."""
  # An encoder-decoder's rows are pairs.
  pairs = isinstance(learner.model, models.EncoderDecoder)
  return {
    "start_id": learner.model.config.start_id if pairs else None,
    "virtual_tokens": len(peft.virtual_ids(learner.variables["adapters"])),
    "answers": objectives.ANSWERS.get(config.objective.get("name", "")),
  }


def _batches(
  read: Callable[..., Any],
  name: str,
  section: config_lib.Config,
  config: config_lib.Config,
  learner: learner_lib.Learner,
  share: tuple[int, int],
  **more: Any,
) -> Any:
  """This process's `share` (which, of how many) of the batches of `config.data`'s section `name`.

  read, more: a function of `pipeline`, and what it takes beside.
  """
  writes = name == "train" and bool(config.train.on_policy or config.train.rollout)
  _check_positions(learner.model, learner.variables["adapters"], section.length, writes)
  asked = kept.build(config, learner, section)
  with distributed.alike(f"config.data.{name}") as told:
    batches = read(
      section,
      learner.tokenizer,
      batch_size=config.train.batch_size,
      kept=asked,
      shard_index=share[0],
      shard_count=share[1],
      **more,
    )
    told |= {"rows": batches.rows, **batches.settings}
  return batches


def _train_batches(
  config: config_lib.Config,
  learner: learner_lib.Learner,
  rows: Mapping[str, Any],
  share: tuple[int, int],
) -> pipeline.BatchIterator:
  return _batches(
    pipeline.train_batches,
    "train",
    config.data.train,
    config,
    learner,
    share,
    seed=config.seed,
    rows_per_task=config.train.meta.get("rows_per_task", 0),
    steps=config.train.steps,
    **rows,
  )


def _held_out(
  config: config_lib.Config,
  learner: learner_lib.Learner,
  bound: bound_lib.Bound,
  rows: Mapping[str, Any],
  share: tuple[int, int],
  mesh: jax.sharding.Mesh,
) -> Evaluator:
  """The objective's evaluator on this process's `share` of `config.data.eval`."""
  section = config.data.eval
  batches = _batches(pipeline.eval_batches, "eval", section, config, learner, share, **rows)
  loss = objectives.build(config.objective, batches.tasks, bound.lesson)
  loss = bound_lib.routed(loss, learner.tasks, batches.tasks)
  return held_out_lib.evaluator(loss, bound.reference.of_batches(batches, section), mesh)


def _notes(learner: learner_lib.Learner, merges: bool) -> list[str]:
  """`Problem.notes`. merges: whether the run leaves a model with adapters merged."""
  notes = []
  if learner.fresh:
    notes.append(f"not in the checkpoint, new and trained: {', '.join(sorted(learner.fresh))}")
  size = quant.size(learner.variables["params"])
  if size.held < size.dense:
    megabytes = f"{size.held / 1e6:,.1f} MB, of {size.dense / 1e6:,.1f} as they stand for"
    notes.append(f"the base is held in {megabytes}")
    if merges and learner.variables["adapters"]:
      notes.append("the model that is saved is the rounded base as numbers, with adapters merged")
  return notes


def of_model(variables: Mapping[str, Any]) -> dict[str, Any]:
  """`variables` without what is frozen beside the model, as a teacher."""
  return {name: variables[name] for name in _OF_MODEL if name in variables}


def _of_model(evaluator: Evaluator) -> Evaluator:
  """`evaluator`, told nothing of a teacher or a reference."""

  def evaluate(model: Any, variables: Any, tokenizer: Any) -> Result:
    return evaluator(model, of_model(variables), tokenizer)

  return evaluate


def _check_tasks(
  config: config_lib.Config, names: Sequence[str], tasks: Sequence[str], pairs: bool
) -> None:
  """Raises ValueError where adapters of each task cannot be trained or told apart."""
  if not names:
    return
  for name in names:
    if name not in tasks:
      raise ValueError(f"each_task has {name!r}, which is no task of the mixture: {list(tasks)}")
  if pairs:
    raise ValueError("each_task is for models of one text; an encoder-decoder's tasks are by row")
  if config.eval.evaluators:
    raise ValueError(
      "each_task is measured by the losses of data.eval, not by eval.evaluators; afterwards"
      " research.evaluate takes each as --adapter RUN/adapter/NAME"
    )


def _check_positions(model: Any, adapters: Any, length: int, writes: bool) -> None:
  """Raises ValueError if there are too few positions for rows of `length`.

  They are too few of a table behind a prefix, and of any model that `writes` such rows.
  """
  before = peft.offset(adapters)
  table = before and model.config.rope is None and model.config.positions == "learned"
  if (writes or table) and before + length > model.config.max_positions:
    prefix = f" and the prefix's {before} positions" if before else ""
    raise ValueError(
      f"rows of {length} tokens{prefix} exceed the model's {model.config.max_positions} positions"
    )
