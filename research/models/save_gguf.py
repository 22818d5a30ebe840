"""Models as GGUF files, which llama.cpp runs."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gguf import LlamaFileType

from research.core import tree
from research.data.tokenizer import Tokenizer
from research.io import gguf_write
from research.models import agreement
from research.models.config import StackConfig
from research.models.families import GGUF_FAMILIES, weights

Tree = Any

_FEW_BITS = ("Q5_1", "Q5_0", "Q4_1", "Q4_0")
_QUANTIZATION_VERSION = 2  # of the layout of blocks, since May 2023


def save_gguf(
  path: str | os.PathLike[str], model: Any, params: Tree, tokenizer: Tokenizer, type: str = "Q8_0"
) -> None:
  """Writes a GGUF file that `research.models.load` and llama.cpp read.

  What the format has no place for is told before anything is written; the file then appears
  complete, and compared with what was meant: every byte of every tensor and all metadata.

  Args:
    path: the file; one that stands there is replaced.
    model: of a family with GGUF names (`research.models.families.GGUF_FAMILIES`).
    params: its parameters, adapters merged; they are rounded from float32.
    tokenizer: of bytes or SentencePiece, see `Tokenizer.to_gguf`.
    type: of the matrices, of `research.io.gguf_write.TYPES`. Norms and biases are F32, as llama.cpp
      asks for, and in files of 4 or 5 bits the head, or the table where that is the head, is Q8_0:
      llama.cpp's own quantizer gives it Q6_K, or Q8_0 where rows are no multiple of 256. Logits
      suffer more from rounding there than from that of any layer.

  Raises:
    ValueError: the type, the family, something of the config or the tokenizer, or a tensor's shape
      or values have no place in the file.
  """
  gguf_write.require_type(type)
  config = model.config
  family = GGUF_FAMILIES[_architecture(config)]
  table = family.gguf_weights(config)
  flat = {path: np.asarray(leaf) for path, leaf in tree.flatten(jax.device_get(params)).items()}
  for name in sorted(set(flat) - {weight.path for weight in table}):
    raise ValueError(f"GGUF files of a {config.family} have no tensor for {name!r}")
  flat = {path: leaf.astype(np.float32) for path, leaf in flat.items()}
  tensors = weights.save(table, tree.unflatten(flat))
  if hasattr(family, "gguf_tensors"):
    tensors |= family.gguf_tensors(config)
  metadata = {
    **family.gguf_metadata(config),
    "general.type": "model",
    "general.name": Path(path).stem,
    "general.file_type": int(_file_type(type)),
    "general.quantization_version": _QUANTIZATION_VERSION,
    **tokenizer.to_gguf(config.vocab_size),
  }
  differences = agreement.config_differences(family.gguf_config(metadata, tensors), config)
  differences += agreement.tokenizer_differences(Tokenizer.from_gguf(metadata), tokenizer)
  if differences:
    raise ValueError(f"a GGUF file would be read with {differences[0]}: it has no place for that")
  gguf_write.write(path, metadata, tensors, _types(tensors, type))


def _architecture(config: StackConfig) -> str:
  """llama.cpp's name of the family."""
  for name, module in GGUF_FAMILIES.items():
    if config.family == module.NAME:
      return name
  known = [module.NAME for module in GGUF_FAMILIES.values()]
  raise ValueError(f"GGUF files of ours are of {', '.join(known)}, and not of a {config.family}")


def _types(tensors: Mapping[str, np.ndarray], kind: str) -> dict[str, str]:
  head = "output.weight" if "output.weight" in tensors else "token_embd.weight"
  found = {name: kind if array.ndim > 1 else "F32" for name, array in tensors.items()}
  if kind in _FEW_BITS:
    found[head] = "Q8_0"
  return found


def _file_type(kind: str) -> LlamaFileType:
  return LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"]
