"""Objectives bind losses to models: `loss(model, variables, batch, rng, step)`."""

from collections.abc import Mapping
from typing import Any

from research.core import config
from research.objectives.causal import Loss, causal

OBJECTIVES = {"causal": causal}


def build(section: Mapping[str, Any]) -> Loss:
  """The objective that a config's section names, with the section's other keys."""
  return config.call(OBJECTIVES, section)


__all__ = ["OBJECTIVES", "Loss", "build", "causal"]
