"""Weights before any training."""

import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from research.core import tree
from research.models.families import t5

# Families whose matrices are not all drawn with a standard deviation of 0.02, as GPT-2's and
# llama's are: rules `(path regex, standard deviation)` by config, of which the first counts.
_DEVIATIONS = {t5.NAME: t5.initial_std}


def initialize(model: Any, rng: jax.Array) -> Any:
  """Random parameters in float32: normal matrices, biases of 0, norms of 1.

  A parameter's numbers depend on `rng` and on its path.
  """
  token = jnp.zeros((1, 1), jnp.int32)
  params = jax.jit(model.init)(rng, token)["params"]
  if model.config.family not in _DEVIATIONS:
    return params
  rules = _DEVIATIONS[model.config.family](model.config)

  def drawn(path: str, leaf: jax.Array) -> jax.Array:
    for pattern, deviation in rules:
      if re.fullmatch(pattern, path):
        key = jax.random.fold_in(rng, zlib.crc32(path.encode()))
        return deviation * jax.random.normal(key, leaf.shape)
    return leaf

  return tree.map_with_path(drawn, params)
