"""What PEFT's files of all methods with virtual tokens have in common."""

from collections.abc import Mapping
from typing import Any

import numpy as np

TENSOR = "prompt_embeddings"
# Keys that change what the adapter computes and the values with which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "modules_to_save": (None, []),
  "num_transformer_submodules": (None, 1),
}


def config(tokens: int) -> dict[str, Any]:
  """The keys of a config with so many virtual tokens, of a decoder."""
  return {"num_virtual_tokens": tokens, "num_transformer_submodules": 1, "modules_to_save": None}


def tensor(
  config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], width: int, what: str
) -> np.ndarray:
  """The only one of `tensors`, float32 `[T, width]`.

  Args:
    config: with T.
    what: of a token it holds.

  Raises:
    ValueError: the config asks for what we cannot honour, or it is another tensor.
  """
  for key, neutral in _NEUTRAL.items():
    if key in config and config[key] not in neutral:
      raise ValueError(f"adapter_config.json: {key}={config[key]!r} cannot be honoured")
  if set(tensors) != {TENSOR}:
    raise ValueError(f"expected one tensor, {TENSOR!r}; there are {', '.join(sorted(tensors))}")
  found, tokens = np.asarray(tensors[TENSOR], np.float32), config.get("num_virtual_tokens")
  if found.shape != (tokens, width):
    raise ValueError(
      f"{TENSOR} is {found.shape}, which is not {(tokens, width)}: {tokens} virtual tokens, and"
      f" {what}"
    )
  return found
