"""Objectives bind losses to models: `loss(model, variables, batch, rng, step)`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.core import config
from research.objectives.answers import AnswerLoss
from research.objectives.causal import causal
from research.objectives.distillation import Lesson, constant_temperature, distillation
from research.objectives.embedding import embedding
from research.objectives.judged import kto
from research.objectives.labelled import classification, masked
from research.objectives.policy import PolicyLoss, policy
from research.objectives.preference import pair_loss
from research.objectives.reward import reward
from research.objectives.routed import by_task
from research.objectives.seq2seq import seq2seq
from research.objectives.tokens import Loss, require_model
from research.objectives.weighting import LearningLoss

OBJECTIVES: dict[str, Callable[..., Loss]] = {
  "causal": causal,
  "distillation": distillation,
  "masked": masked,
  "classification": classification,
  "embedding": embedding,
  "seq2seq": seq2seq,
  "preference": pair_loss,
  "kto": kto,
  "reward": reward,
  "policy": policy,
}

# Objectives of answers, and the kind of rows that they read (`data.answers.KINDS`).
ANSWERS: dict[str, str] = {
  "preference": "pairs",
  "reward": "pairs",
  "kto": "judged",
  "policy": "prompts",
}


def build(
  section: Mapping[str, Any],
  tasks: Sequence[str] = (),
  lesson: Lesson | None = None,
  model: Any = None,
) -> Loss:
  """The objective that a config's section names, with the section's other keys.

  Args:
    tasks: the names of the data's tasks, which have metrics of their own.
    lesson: what a distillation is told of its run; None where there is no teacher.
    model: that learns.

  Raises:
    ConfigError: the section cannot be, or there is a teacher and nobody learns from it.
  """
  if section.get("name") == "distillation":
    return config.call(OBJECTIVES, section, tasks=tasks, lesson=lesson)
  if lesson is not None:
    raise config.ConfigError(
      f"config.teacher is for the objective 'distillation', not {section.get('name')!r}"
    )
  if section.get("name") == "policy":
    return config.call(OBJECTIVES, section, tasks=tasks, model=model)
  return config.call(OBJECTIVES, section, tasks=tasks)


def variables(objective: Loss) -> Any:
  """The collection `objective` that the loss learns with the model, before the first step.

  Raises:
    ConfigError: it cannot be, with the data's tasks.
  """
  return objective.initial() if isinstance(objective, LearningLoss | PolicyLoss) else {}


__all__ = [
  "ANSWERS",
  "OBJECTIVES",
  "AnswerLoss",
  "Lesson",
  "Loss",
  "PolicyLoss",
  "build",
  "by_task",
  "causal",
  "classification",
  "constant_temperature",
  "distillation",
  "embedding",
  "kto",
  "masked",
  "pair_loss",
  "policy",
  "require_model",
  "reward",
  "seq2seq",
  "variables",
]
