"""A student learns what its teacher would say: a divergence of logits, mixed with cross-entropy.

B batch, S sequence, D student's and E teacher's width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from research.core import config
from research.losses import distillation as losses
from research.losses.divergences import DIVERGENCES
from research.losses.temperatures import TEMPERATURES
from research.models.watch import watch
from research.objectives import intermediate, tokens
from research.objectives.tokens import Loss
from research.objectives.weighting import LearningLoss

Tree = Any


@dataclasses.dataclass(frozen=True)
class Lesson:
  """What a distillation is told of its run.

  student, teacher: models, of whose variables the teacher's are the collection `teacher`, or, where
    that is not there, the student's without its adapters. A teacher of None does not run: what was
    kept of it is in the batch.
  total_steps: of the run, over which temperatures go.
  seed: of the run.
  """

  student: Any
  teacher: Any
  total_steps: int
  seed: int


def distillation(
  *,
  tasks: Sequence[str] = (),
  lesson: Lesson | None,
  divergence: Mapping[str, Any] | None = None,
  temperature: Mapping[str, Any] | None = None,
  squared: bool = True,
  share: float = 1.0,
  chunk_tokens: int = 256,
  features: Sequence[Mapping[str, Any]] = (),
  attention: Sequence[Mapping[str, Any]] = (),
) -> Loss:
  """The loss `sum of weights * (share * divergence + (1 - share) * cross-entropy)`, in nats.

  Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531). Both models read the same rows, and
  the batch's weights say which tokens count. The teacher is a constant and has no dropout. In
  evaluation the temperature is that of the last step.

  Beside the loss there are the metrics `distillation/divergence`, `distillation/cross_entropy` (of
  the student alone, at temperature 1, whatever the share), `distillation/temperature` and
  `accuracy`.

  Args:
    tasks: names of the numbers in the batch's `task`; each has its own `loss/NAME` and the like.
    lesson: see `Lesson`.
    divergence: a section of `losses.divergences.DIVERGENCES`, by default `forward_kl`.
    temperature: a section of `losses.temperatures.TEMPERATURES`, by default a constant 1.
    squared: see `losses.distillation.chunked`.
    share: of the divergence.
    chunk_tokens: tokens whose logits exist at one time, over the whole batch.
    features: sections `{"name": "mean_squared", "weight": 1.0, "layers": [(2, 4), ...]}`, a loss of
      `losses.features` between hidden states of the student and of the teacher, or "linear_cka"
      (`objectives.intermediate` says how they are numbered). By default the student's of every
      layer are paired with the teacher's as far along. Where widths differ, a projection is learnt.
    attention: sections of "map_kl" and "score_mean_squared", with "heads", the teacher's for each
      of the student's, where neither count is a multiple of the other, and of "query_relation",
      "key_relation" and "value_relation", with "heads", into how many parts vectors are split; all
      with "weight" and "layers", by default the last of both.
      Of several pairs of layers a summand is the mean. What such a summand is, times the tokens'
      weights, is the metric `distillation/NAME`; the metrics of tasks are without it.

  Raises:
    ConfigError: there is no teacher, or a section cannot be.
    ValueError: the teacher is no decoder or has another vocabulary, the share is none, or layers
      or heads cannot be mapped.
  """
  if lesson is None:
    raise config.ConfigError(
      "config.objective: 'distillation' learns from a teacher, and config.teacher names none"
    )
  if lesson.teacher is not None:
    tokens.require_model("distillation", lesson.teacher)
    sizes = lesson.student.config.vocab_size, lesson.teacher.config.vocab_size
    losses.require_one_vocabulary(*sizes)
  elif features or attention:
    raise ValueError("features and attention are of a teacher that runs; set keep_tokens to 0")
  losses.require_share(share)
  far = config.call(DIVERGENCES, divergence or {"name": "forward_kl"})
  if lesson.teacher is None:
    losses.require_log_probs(far)
  heat = config.call(
    TEMPERATURES, temperature or {"name": "constant"}, total_steps=lesson.total_steps
  )
  summands = intermediate.build(features, attention, lesson)
  inside = {
    "hidden": any(not summand.inside for summand in summands),
    "attention": any(summand.inside for summand in summands),
  }

  def loss(model, variables, batch, rng, step):
    tokens.require_model("distillation", model)
    tokens.require("distillation", batch, "targets", "rows of text without a label")
    rngs = None if rng is None else {"dropout": rng}
    own = {name: part for name, part in variables.items() if name != "teacher"}
    ours = watch(model, own, batch, rngs=rngs, **inside)
    if lesson.teacher is None:
      theirs, said = None, losses.Kept(batch["teacher_ids"], batch["teacher_log_probs"])
    else:
      teacher, constants = _teacher(lesson, model, variables)
      theirs = watch(teacher, constants, batch, **inside)
      said = losses.Teacher(*tokens.head_of(teacher, constants), theirs.output)
    degree = heat(lesson.total_steps - 1 if step is None else step)
    total, told = losses.chunked(
      *tokens.head_of(model, own, rngs),
      ours.output,
      said,
      batch["weights"],
      divergence=far,
      temperature=degree,
      squared=squared,
      targets=batch["targets"],
      share=share,
      chunk_tokens=chunk_tokens,
    )
    weight = batch["weights"].sum()
    named = {
      name if name in ("loss", "accuracy") else f"distillation/{name}": each
      for name, each in told.items()
    }
    metrics = {name: (each.sum(), weight) for name, each in named.items() if name != "loss"}
    metrics["distillation/temperature"] = (degree * weight, weight)
    for summand in summands:
      part = summand(ours, theirs, variables.get("objective", {}), batch["weights"])
      total = total + summand.weight * part
      metrics[f"distillation/{summand.name}"] = (part, weight)
    return total, weight, metrics | tokens.of_tasks(named, batch, tasks)

  if learnt := intermediate.initial(summands, lesson.seed):
    return LearningLoss(loss, lambda: learnt)
  return loss


def constant_temperature(section: Mapping[str, Any]) -> float:
  """The temperature of a distillation's section, for what is kept of a teacher at it.

  Raises:
    ConfigError: the section is another objective's.
    ValueError: it changes over the run.
  """
  if section["name"] != "distillation":
    raise config.ConfigError(
      f"config.teacher is for the objective 'distillation', not {section['name']!r}"
    )
  heat = section.get("temperature") or {"name": "constant"}
  if heat["name"] != "constant":
    raise ValueError(
      f"keep_tokens keeps a teacher at one temperature, and {heat['name']!r} changes it"
    )
  return float(heat.get("value", 1.0))


def _teacher(lesson, model, variables):
  """The teacher and its variables, as constants."""
  if "teacher" not in variables:
    return model, jax.lax.stop_gradient({"params": variables["params"]})
  own = variables["teacher"]
  return lesson.teacher, jax.lax.stop_gradient(own)
