"""Rotary settings in GGUF files, as llama.cpp names them.

Scalings are in the metadata, except llama3's: of that, files have `rope_freqs.weight` alone, what
each frequency is divided by.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.models.families import rope as rope_lib
from research.nn.positions import Rope

FREQUENCIES = "rope_freqs.weight"

# How llama.cpp's converter makes that tensor; the factor is its largest value.
_LLAMA3 = {
  "rope_type": "llama3",
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}
_SCALINGS = {"none": "default", "linear": "linear", "yarn": "yarn"}


def read(keys: Mapping[str, Any], tensors: Mapping[str, Any], head_size: int) -> Rope:
  """From an architecture's keys, without its name before them.

  Raises:
    ValueError: the scaling is unknown, or `rope_freqs.weight` is not as Llama 3 makes it.
  """
  scaling = keys.get("rope.scaling.type", "none")
  if scaling not in _SCALINGS:
    raise ValueError(
      f"GGUF's rope scaling {scaling!r} is not supported; known: {', '.join(_SCALINGS)}"
    )
  found: dict[str, Any] = {
    "rope_type": _SCALINGS[scaling],
    "factor": keys.get("rope.scaling.factor", 1.0),
    "original_max_position_embeddings": keys.get("rope.scaling.original_context_length"),
    "beta_fast": keys.get("rope.scaling.yarn_beta_fast"),
    "beta_slow": keys.get("rope.scaling.yarn_beta_slow"),
  }
  if FREQUENCIES in tensors:
    found = {**_LLAMA3, "factor": float(tensors[FREQUENCIES].max())}
  turn = rope_lib.read(found, keys["context_length"], theta=keys.get("rope.freq_base", 10_000.0))
  if FREQUENCIES in tensors:
    divisors = frequencies(turn, head_size)
    if scaling != "none" or not np.allclose(tensors[FREQUENCIES], divisors, rtol=1e-5, atol=0):
      raise ValueError(
        f"{FREQUENCIES} is not Llama 3's of factor {turn.factor:g} (low 1, high 4, from 8192"
        " positions); no other is supported"
      )
  return turn


def write(turn: Rope) -> dict[str, Any]:
  """The inverse of `read`, as far as it goes: whoever writes reads it again and compares."""
  found: dict[str, Any] = {"rope.freq_base": float(turn.theta)}
  if turn.kind in ("linear", "yarn"):
    found |= {"rope.scaling.type": turn.kind, "rope.scaling.factor": float(turn.factor)}
  if turn.kind == "yarn":
    found |= {
      "rope.scaling.original_context_length": turn.original_max_positions,
      "rope.scaling.yarn_beta_fast": float(turn.beta_fast),
      "rope.scaling.yarn_beta_slow": float(turn.beta_slow),
    }
  return found


def frequencies(turn: Rope, head_size: int) -> np.ndarray:
  """What a llama3 scaling divides each frequency by, float32 `[R/2]`."""
  plain = dataclasses.replace(turn, kind="default").frequencies(head_size)
  return np.asarray(plain / turn.frequencies(head_size))
