"""Models that draft for others in speculative decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from research.models.decoder import Decoder
from research.models.students import take_layers, with_layers


class Draft(NamedTuple):
  """A model that drafts for another, of the same vocabulary."""

  model: Decoder
  variables: Any


def drop_layers(model: Decoder, variables: Any, layers: Sequence[int]) -> Draft:
  """The model itself, with only the `layers` of these numbers, from 0, in this order.

  Raises:
    ValueError: there are none, or the model has no such layer.
  """
  config = with_layers(model.config, layers)
  kept = {name: take_layers(collection, layers) for name, collection in variables.items()}
  return Draft(model.clone(config=config), kept)
