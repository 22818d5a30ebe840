"""Objectives bind losses to models: `loss(model, variables, batch, rng, step)`."""

from collections.abc import Mapping, Sequence
from typing import Any

from research.core import config
from research.objectives.causal import Loss, causal
from research.objectives.seq2seq import seq2seq

OBJECTIVES = {"causal": causal, "seq2seq": seq2seq}


def build(section: Mapping[str, Any], tasks: Sequence[str] = ()) -> Loss:
  """The objective that a config's section names, with the section's other keys.

  Args:
    tasks: the names of the data's tasks, which have metrics of their own.
  """
  return config.call(OBJECTIVES, section, tasks=tasks)


__all__ = ["OBJECTIVES", "Loss", "build", "causal", "seq2seq"]
