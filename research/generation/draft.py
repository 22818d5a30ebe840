"""Models that draft for others in speculative decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.models.decoder import Decoder


class Draft(NamedTuple):
  """A model that drafts for another, of the same vocabulary."""

  model: Decoder
  variables: Any


def drop_layers(model: Decoder, variables: Any, layers: Sequence[int]) -> Draft:
  """The model itself, with only the `layers` of these numbers, from 0, in this order.

  Raises:
    ValueError: there are none, or the model has no such layer.
  """
  count = model.config.num_layers
  if not layers or min(layers) < 0 or max(layers) >= count:
    raise ValueError(f"a draft of the layers {list(layers)}: the model has 0 to {count - 1}")
  index = np.array(layers, np.int32)
  windows = tuple(model.config.windows[i] for i in layers) if model.config.windows else ()
  config = dataclasses.replace(model.config, num_layers=len(layers), windows=windows)
  kept = {
    name: {
      part: jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0), nodes)
      if part == "layers"
      else nodes
      for part, nodes in collection.items()
    }
    for name, collection in variables.items()
  }
  return Draft(model.clone(config=config), kept)
