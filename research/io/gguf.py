"""GGUF files: metadata as plain Python values, tensors dequantized when they are asked for.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, counts,
key-value pairs, one record a tensor, padding, the tensors. The file is parsed here because
the `gguf` package makes several numpy views of every string of the vocabulary, which takes
seconds; the arithmetic of the quantized types is that package's.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from research.core.tree import nearest

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32

# The numbers that the format gives to the types of metadata values.
_SCALARS = {
  0: "<u1",
  1: "<i1",
  2: "<u2",
  3: "<i2",
  4: "<u4",
  5: "<i4",
  6: "<f4",
  7: "?",
  10: "<u8",
  11: "<i8",
  12: "<f8",
}
_STRING = 8
_ARRAY = 9


@dataclasses.dataclass(frozen=True)
class GGUF:
  """A GGUF file.

  `metadata` maps keys to int, float, bool, str or lists of them. `tensors` maps names to
  arrays, float32 `[out, in]` (GGUF itself lists dimensions the other way round), each
  dequantized anew every time it is asked for.
  """

  metadata: dict[str, Any]
  tensors: Tensors


class _Cursor:
  """Reads one value after the other from a mapped file."""

  def __init__(self, data: mmap.mmap):
    self.data = data
    self.offset = 0

  def take(self, size: int) -> bytes:
    chunk = self.data[self.offset : self.offset + size]
    if len(chunk) != size:
      raise ValueError(f"ends within the header, at byte {len(self.data)}")
    self.offset += size
    return chunk

  def u32(self) -> int:
    return struct.unpack("<I", self.take(4))[0]

  def u64(self) -> int:
    return struct.unpack("<Q", self.take(8))[0]

  def string(self) -> str:
    return self.take(self.u64()).decode()

  def scalars(self, kind: int, count: int) -> list[Any]:
    if kind not in _SCALARS:
      raise ValueError(f"has a metadata value of unknown type {kind}")
    dtype = np.dtype(_SCALARS[kind])
    return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()

  def value(self, kind: int) -> Any:
    if kind == _STRING:
      return self.string()
    if kind != _ARRAY:
      return self.scalars(kind, 1)[0]
    kind, count = self.u32(), self.u64()
    if kind in (_STRING, _ARRAY):
      return [self.value(kind) for _ in range(count)]
    return self.scalars(kind, count)


@dataclasses.dataclass(frozen=True)
class _Record:
  """Where a tensor lies; `shape` is numpy's, `[out, in]`."""

  shape: tuple[int, ...]
  type: GGMLQuantizationType
  offset: int
  nbytes: int


class Tensors(Mapping[str, np.ndarray]):
  """The tensors of a file by name, dequantized anew every time; `stored` gives what is there."""

  def __init__(self, path: Path, data: mmap.mmap, records: dict[str, _Record]):
    self._path = path
    self._data = data
    self._records = records

  def __getitem__(self, name: str) -> np.ndarray:
    kind, rows = self.stored(name)
    try:
      return quants.dequantize(rows, GGMLQuantizationType[kind])
    except NotImplementedError as error:
      raise ValueError(
        f"{self._path}: tensor {name!r} has type {kind}, which cannot be dequantized"
      ) from error

  def stored(self, name: str) -> tuple[str, np.ndarray]:
    """The name of a tensor's type and its bytes, uint8 `[out, bytes of a row]`.

    Raises:
      KeyError: there is no such tensor.
    """
    if name not in self._records:
      raise KeyError(f"{self._path} has no tensor {name!r}{nearest(name, self._records)}")
    record = self._records[name]
    raw = np.frombuffer(self._data, np.uint8, record.nbytes, record.offset)
    return record.type.name, raw.reshape(*record.shape[:-1], -1)

  def __contains__(self, name: object) -> bool:
    return name in self._records

  def __iter__(self) -> Iterator[str]:
    return iter(self._records)

  def __len__(self) -> int:
    return len(self._records)


def read(path: str | os.PathLike[str]) -> GGUF:
  """Opens a GGUF file (versions 2 and 3, little-endian): all metadata, tensors lazily.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not a GGUF file, one cut short, or an unknown type (when the tensor is asked
      for, if the type is known but has no dequantization).
  """
  path = Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"no such GGUF file: {path}")
  with path.open("rb") as file:
    if file.read(4) != _MAGIC:
      raise ValueError(f"{path} is not a GGUF file: it does not start with {_MAGIC.decode()!r}")
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  try:
    metadata, records = _parse(_Cursor(data))
  except ValueError as error:  # also what bytes that are not UTF-8 raise
    raise ValueError(f"{path}: {error}") from error
  return GGUF(metadata, Tensors(path, data, records))


def _parse(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, _Record]]:
  cursor.take(len(_MAGIC))
  version = cursor.u32()
  if version not in _VERSIONS:
    raise ValueError(f"has GGUF version {version}, not one of {_VERSIONS} (little-endian)")
  tensor_count, pair_count = cursor.u64(), cursor.u64()
  metadata: dict[str, Any] = {}
  for _ in range(pair_count):
    key = cursor.string()
    metadata[key] = cursor.value(cursor.u32())
  records = dict(_record(cursor) for _ in range(tensor_count))
  # Offsets count from the end of the records, rounded up to the alignment.
  alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
  start = -(-cursor.offset // alignment) * alignment
  for name, record in records.items():
    records[name] = dataclasses.replace(record, offset=start + record.offset)
    end = start + record.offset + record.nbytes
    if end > len(cursor.data):
      raise ValueError(f"is cut short: {name!r} ends at {end} of {len(cursor.data)} bytes")
  return metadata, records


def _record(cursor: _Cursor) -> tuple[str, _Record]:
  name = cursor.string()
  shape = tuple(reversed([cursor.u64() for _ in range(cursor.u32())]))
  kind = cursor.u32()
  offset = cursor.u64()
  try:
    tensor_type = GGMLQuantizationType(kind)
  except ValueError as error:
    raise ValueError(f"tensor {name!r} has unknown type {kind}") from error
  block_size, block_bytes = GGML_QUANT_SIZES[tensor_type]
  if shape[-1] % block_size:
    raise ValueError(f"tensor {name!r} has rows of {shape[-1]}, no multiple of {block_size}")
  nbytes = int(np.prod(shape, dtype=np.int64)) // block_size * block_bytes
  return name, _Record(shape, tensor_type, offset, nbytes)
