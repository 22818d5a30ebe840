"""Longer rows for a model with rotary positions, by other frequencies."""

from __future__ import annotations

import dataclasses
from typing import Any

from research.models.decoder import Decoder
from research.models.families import rope

KINDS = ("linear", "yarn")


def stretched(model: Any, kind: str, factor: float) -> Decoder:
  """`model` for rows `factor` times as long, with the same parameters.

  "linear" turns all frequencies slower, so that positions lie between those that were trained (Chen
  et al. 2023, arXiv:2306.15595, eq. 4); "yarn" keeps the fast ones and sharpens attention (Peng et
  al. 2023, arXiv:2309.00071, section 3.4). Both are for models that go on to be trained with long
  rows; without, linear costs more on short ones. Layers with a window of their own keep their
  frequencies.

  Raises:
    ValueError: there is no such kind, the factor is not above 1, or the model has no rotary
      positions or stretched ones.
  """
  if kind not in KINDS:
    raise ValueError(f"positions are stretched by {' or '.join(KINDS)}, not {kind!r}")
  if not factor > 1:
    raise ValueError(f"a factor of {factor} does not stretch; give one above 1")
  turn = getattr(model.config, "rope", None)
  if turn is None:
    raise ValueError("only rotary positions can be stretched, and the model has others")
  if turn.kind != "default":
    raise ValueError(f"the model's positions are {turn.kind!r} already, by {turn.factor:g}")
  limit = model.config.max_positions
  told = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": limit}
  found = rope.read(told, limit, theta=turn.theta, fraction=turn.fraction)
  config = dataclasses.replace(model.config, rope=found, max_positions=round(limit * factor))
  return model.clone(config=config)
