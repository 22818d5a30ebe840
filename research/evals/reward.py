"""Whether a reward model finds the better of two answers, and is as right as it is sure.

N pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from research.core import sharding
from research.evals import answers, bootstrap, progress, reliability
from research.evals.result import Result
from research.models import scored

_BINS = 10


def calibration_error(margins: np.ndarray) -> float:
  """The expected calibration error of `sigmoid(margin)`, the chance that the first text is better.

  The chance that a model gives to the text that it prefers is its confidence, 0.5 to 1, in ten bins
  of equal width; the error is the mean over pairs of how far a bin's share of right preferences is
  from its mean confidence (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599, eq. 3).

  Args:
    margins: `[N]`, the score of the text that is better less the other's.
  """
  confidence = 1 / (1 + np.exp(-np.abs(margins)))
  return reliability.calibration_error(
    reliability.table(confidence, margins > 0, bins=_BINS, low=0.5)
  )


@dataclasses.dataclass(frozen=True)
class Reward:
  """Held-out pairs by a reward model's scores.

  Metrics: `accuracy` (the chosen answer's score is larger), `margin` (by how much, the mean),
  `calibration_error`, and the count `pairs`. A record is a pair.

  data: the config of a source whose rows have chosen and rejected answers.
  length: tokens of a row; longer answers lose their end.
  batch_size: pairs at a time.
  label: the result's name.
  """

  data: Mapping[str, Any]
  length: int = 1024
  batch_size: int = 8
  label: str = "reward"

  def __call__(self, model: Any, variables: Any, tokenizer: Any) -> Result:
    """Scores all pairs.

    Raises:
      ValueError: the model gives no score, or a row is no pair.
    """
    if getattr(model.config, "head", None) != "score":
      raise ValueError(f"{self.label} is of models with config.model.head = {{'name': 'score'}}")
    examples, ids = answers.read(
      self.data, tokenizer, variables, length=self.length, label=self.label
    )
    margins = np.zeros(len(examples))
    with progress.bar(len(examples), self.label, "pair") as bar:
      for chosen, batch in answers.batches(
        examples, self.batch_size, self.length, tokenizer.pad_id or 0
      ):
        found = sharding.fetched(_scores(model, variables, batch)).reshape(-1, 2)[: len(chosen)]
        margins[chosen] = found[:, 0] - found[:, 1]
        bar.update(len(chosen))
    records = [
      {"id": name, "margin": float(margin), "correct": int(margin > 0)}
      for name, margin in zip(ids, margins, strict=True)
    ]
    rights = [float(margin > 0) for margin in margins]
    metrics = {
      "accuracy": float(np.mean(rights)),
      "margin": float(np.mean(margins)),
      "calibration_error": calibration_error(margins),
      "pairs": len(records),
    }
    intervals = {}
    if len(records) > 1:
      intervals = {
        "accuracy": bootstrap.interval(rights),
        "margin": bootstrap.interval(margins.tolist()),
      }
    means = {"accuracy": ("correct", None), "margin": ("margin", None)}
    return Result(self.label, metrics, records, means, intervals)


@partial(jax.jit, static_argnums=0)
def _scores(model, variables, batch):
  return scored.scores(model, variables, batch)
