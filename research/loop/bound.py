"""A learner with what it learns by: its teacher, its objective, its reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research import objectives
from research.core import config as config_lib
from research.loop import references, subject
from research.loop import teacher as teachers
from research.loop.learner import Learner
from research.loop.step import Objective


@dataclasses.dataclass(frozen=True)
class Bound:
  """A learner with what it learns by.

  variables: the learner's, and those of the teacher, the reference and the objective.
  lesson: what the objective was told of the teacher.
  """

  variables: dict[str, Any]
  objective: Objective
  lesson: objectives.Lesson | None
  teacher: teachers.Teacher | None
  reference: references.Reference

  @property
  def beside(self) -> Any:
    """The teacher's model, where it has variables of its own."""
    return None if self.teacher is None or self.teacher.variables is None else self.teacher.model

  @property
  def forward_passes(self) -> int:
    """Passes of the learner's own base beside the loss's: a reference's, or a teacher's."""
    asked = getattr(self.objective, "asks_reference", False)
    return int(asked or (self.teacher is not None and self.teacher.variables is None))


def bind(
  config: config_lib.Config,
  learner: Learner,
  tasks: Sequence[str],
  rows: Mapping[str, Any],
  load_teacher: Callable[[str, str], subject.Subject] = subject.load_model,
) -> Bound:
  """The teacher, the objective and the reference of a run on data with such tasks.

  Args:
    rows: how `data.pipeline` is to read rows that a reference is asked about.
    load_teacher: see `teacher.build`.

  Raises:
    ConfigError: one of them cannot be; the message names it.
  """
  variables = dict(learner.variables)
  keeps = config.teacher.keep_tokens > 0
  teacher = None if keeps else teachers.build(config, learner, load_teacher)
  if teacher and teacher.variables is not None:
    variables["teacher"] = teacher.variables
  with config_lib.blaming("objective"):
    lesson = None
    if teacher or keeps:
      running = teacher.model if teacher else None
      lesson = objectives.Lesson(learner.model, running, config.train.steps, config.seed)
    objective = objectives.build(config.objective, tasks, lesson, learner.model)
    if learnt := objectives.variables(objective):
      variables["objective"] = learnt
    objectives.require_model(config.objective.name, learner.model)
    reference = references.build(objective, learner, config.train.batch_size, rows)
  with config_lib.blaming("adapters"):
    objective = routed(objective, learner.tasks, tasks)
  return Bound(variables | reference.variables, objective, lesson, teacher, reference)


def routed(loss: Objective, names: Sequence[str], tasks: Sequence[str]) -> Objective:
  """`loss` with the adapter of each token's task, where tasks have their own."""
  return objectives.by_task(loss, names, tasks) if names else loss
