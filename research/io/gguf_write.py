"""Writes GGUF files, version 3, little-endian; `research.io.gguf` reads them.

The codes are those of the `gguf` package's `quants`, which are those of ggml's reference code in C,
byte for byte. Rows are `[out, in]`, and blocks of 32 run along `in`:

  Q8_0       absmax / 127 in float16, 32 codes
  Q4_0, Q5_0 the value furthest from 0 over -8 or -16 in float16, so that it is hit exactly
  Q4_1, Q5_1 (max - min) / 15 or 31 and the minimum in float16
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter, quants

from research.core.tree import nearest
from research.io import gguf

FLOATS = ("F32", "F16", "BF16")
TYPES = (*FLOATS, "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")

# Values of F16 and the scales and minima of all blocks are float16.
_LARGEST = float(np.finfo(np.float16).max)


def quantize(values: np.ndarray, kind: str) -> np.ndarray:
  """Values as a GGUF file stores them.

  Args:
    values: float32 `[out, in]`.
    kind: one of `TYPES`; `in` is a multiple of its block.

  Returns:
    float32 or float16 `[out, in]`, or uint8 `[out, bytes of a row]`.
  """
  return quants.quantize(np.ascontiguousarray(values, np.float32), GGMLQuantizationType[kind])


def write(
  path: str | os.PathLike[str],
  metadata: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  types: Mapping[str, str],
) -> None:
  """Writes one file, which appears under its name complete and read back, or not at all.

  Read back means: every value of the metadata and every byte of every tensor is compared with what
  was to be written. Tensors are quantized one at a time.

  Args:
    path: the file; its directory exists.
    metadata: keys -> bool, int (stored as uint32), float (as float32), str, or a list of one of
      them (ints as int32); `general.architecture` is among them.
    tensors: arrays of any float type, `[out, in]` or `[in]`.
    types: the type of each tensor, of `TYPES`.

  Raises:
    ValueError: an unknown type, rows that a type's blocks do not divide, values that are not finite
      or beyond float16 where a type has that, or metadata that the format does not have.
  """
  path = Path(path)
  for name, array in tensors.items():
    _check(name, array, types[name])
  writer_metadata = {key: _typed(key, value) for key, value in metadata.items()}
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    _write(temporary, writer_metadata, tensors, types)
    _compare(path, gguf.read(temporary), metadata, tensors, types)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def require_type(kind: str) -> None:
  """Raises ValueError if `kind` is none of `TYPES`."""
  if kind not in TYPES:
    raise ValueError(
      f"GGUF type {kind!r} cannot be written; known: {', '.join(TYPES)}{nearest(kind, TYPES)}"
    )


def _check(name: str, array: np.ndarray, kind: str) -> None:
  require_type(kind)
  block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
  if array.shape[-1] % block:
    raise ValueError(
      f"{name!r} has rows of {array.shape[-1]}, which the blocks of {kind}, {block} values, do not"
      f" divide; {', '.join(FLOATS)} take any"
    )
  low, high = float(array.min()), float(array.max())
  if not np.isfinite([low, high]).all():  # a NaN anywhere is both
    raise ValueError(f"{name!r} has values that are not finite")
  if kind not in ("F32", "BF16") and max(-low, high) > _LARGEST:
    raise ValueError(
      f"{name!r} reaches {max(-low, high):g}, and {kind} is kept in float16, up to {_LARGEST:g};"
      " F32 and BF16 hold it"
    )


def _typed(key: str, value: Any) -> tuple[Any, GGUFValueType]:
  if isinstance(value, bool):
    return value, GGUFValueType.BOOL
  if isinstance(value, int):
    if not 0 <= value < 2**32:
      raise ValueError(f"{key!r} is {value}; integers in GGUF metadata are from 0 to 2**32 - 1")
    return value, GGUFValueType.UINT32
  if isinstance(value, float):
    return value, GGUFValueType.FLOAT32
  if isinstance(value, str):
    return value, GGUFValueType.STRING
  if not isinstance(value, list) or len({type(item) for item in value}) != 1:
    raise ValueError(
      f"{key!r} is a {type(value).__name__}; GGUF metadata are bool, int, float, str, or lists of"
      " at least one value, all of one of these types"
    )
  return value, GGUFValueType.ARRAY


def _write(path, metadata, tensors, types):
  writer = GGUFWriter(path, metadata["general.architecture"][0])
  for key, (value, kind) in metadata.items():
    if key != "general.architecture":  # which the writer has added itself
      writer.add_key_value(key, value, kind)
  for name, array in tensors.items():
    kind = GGMLQuantizationType[types[name]]
    block, size = GGML_QUANT_SIZES[kind]
    # The writer takes the shape of values, unless the array is of bytes.
    dtype = np.dtype(np.float32)
    writer.add_tensor_info(name, array.shape, dtype, array.size // block * size, kind)
  try:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, array in tensors.items():
      writer.write_tensor_data(quantize(array, types[name]))
  finally:
    writer.close()


def _compare(path, found, metadata, tensors, types):
  """Raises RuntimeError where the file is not what was meant."""
  wrong = [key for key, value in metadata.items() if not _same(found.metadata.get(key), value)]
  wrong += sorted(set(found.metadata) - set(metadata))
  for name, array in tensors.items():
    kind, codes = found.tensors.stored(name)
    meant = quantize(array, types[name]).view(np.uint8)
    if kind != types[name] or not np.array_equal(codes, meant):
      wrong.append(name)
  if wrong:
    raise RuntimeError(f"{path} was read back with other values of {', '.join(wrong[:6])}")


def _same(found, meant):
  if isinstance(meant, float):
    return found == float(np.float32(meant))
  if isinstance(meant, list) and isinstance(meant[0], float):
    return found == np.array(meant, np.float32).tolist()
  return found == meant and type(found) is type(meant)
