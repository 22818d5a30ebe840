"""Evaluators: `(model, variables, tokenizer) -> Result`, made from config sections by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from research.core import config as config_lib
from research.evals import plots
from research.evals.attention import Attention
from research.evals.bert_score import BertScore
from research.evals.bleu import Bleu
from research.evals.classification import Classification
from research.evals.harness import Harness
from research.evals.lengths import Lengths
from research.evals.needle import Needle
from research.evals.perplexity import Perplexity
from research.evals.reference_kl import ReferenceKL
from research.evals.repetition import Repetition
from research.evals.result import (
  Difference,
  Evaluator,
  Result,
  compare,
  comparison_table,
  table,
)
from research.evals.reward import Reward
from research.evals.rouge import Rouge
from research.evals.token_calibration import TokenCalibration
from research.evals.verifiable import Verifiable

EVALUATORS: dict[str, Callable[..., Evaluator]] = {
  "attention": Attention,
  "bert_score": BertScore,
  "bleu": Bleu,
  "classification": Classification,
  "harness": Harness,
  "lengths": Lengths,
  "needle": Needle,
  "perplexity": Perplexity,
  "reference_kl": ReferenceKL,
  "repetition": Repetition,
  "reward": Reward,
  "rouge": Rouge,
  "token_calibration": TokenCalibration,
  "verifiable": Verifiable,
}


def build(sections: Iterable[Mapping[str, Any]]) -> list[Evaluator]:
  """An evaluator for each section: its `name` in `EVALUATORS`, and that one's arguments.

  Raises:
    ConfigError: an unknown name or argument, or two evaluators of one label.
    ValueError: an argument's value cannot be.
  """
  evaluators = [config_lib.call(EVALUATORS, section) for section in sections]
  labels = [evaluator.label for evaluator in evaluators]
  for label in labels:
    if labels.count(label) > 1:
      raise config_lib.ConfigError(f"two evaluators are labelled {label!r}; give them a `label`")
  return evaluators


__all__ = [
  "EVALUATORS",
  "Difference",
  "Evaluator",
  "Result",
  "build",
  "compare",
  "comparison_table",
  "plots",
  "table",
]
