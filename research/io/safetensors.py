"""Safetensors files, single and sharded as Hugging Face lays them out.

The format (https://github.com/huggingface/safetensors): a little-endian uint64 with the
size of a JSON header, the header `name -> {dtype, shape, data_offsets}`, then the bytes of
the tensors, row-major. Written here instead of through the `safetensors` package because
its numpy side has no float8 and writes a transposed array's bytes in the wrong order.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from research.core.tree import nearest

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_DTYPES: dict[str, np.dtype] = {
  name: np.dtype(dtype)
  for name, dtype in {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "C64": "<c8",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
  }.items()
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class _File(Mapping[str, np.ndarray]):
  """One file. A tensor is a read-only view of the mapped file: reading it costs page faults."""

  def __init__(self, path: Path):
    with path.open("rb") as file:
      size = os.fstat(file.fileno()).st_size
      if size < 8:
        raise ValueError(f"{path} is not a safetensors file: it has {size} bytes")
      (header_size,) = struct.unpack("<Q", file.read(8))
      if 8 + header_size > size:
        raise ValueError(f"{path} is not a safetensors file or is cut short: no complete header")
      self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    self._path = path
    self._start = 8 + header_size
    try:
      header = json.loads(self._data[8 : self._start])
    except ValueError as error:
      raise ValueError(f"{path} is not a safetensors file: its header is not JSON") from error
    self.metadata: dict[str, str] = header.pop("__metadata__", {})
    for name, entry in header.items():
      begin, end = entry["data_offsets"]
      if self._start + end > size:
        raise ValueError(
          f"{path} is cut short: {name!r} ends at {self._start + end} of {size} bytes"
        )
      dtype = _DTYPES.get(entry["dtype"])
      if dtype is None:
        raise ValueError(
          f"{path}: {name!r} has dtype {entry['dtype']}, which is none of {', '.join(_DTYPES)}"
        )
      if end - begin != int(np.prod(entry["shape"], dtype=np.int64)) * dtype.itemsize:
        raise ValueError(
          f"{path}: {end - begin} bytes of {name!r} are not {entry['dtype']} {entry['shape']}"
        )
    self._header: dict[str, Any] = header

  def __getitem__(self, name: str) -> np.ndarray:
    if name not in self._header:
      raise KeyError(f"{self._path} has no tensor {name!r}{nearest(name, self._header)}")
    entry = self._header[name]
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:  # frombuffer refuses an empty range at the end of the file
      return np.empty(shape, dtype)
    offset = self._start + entry["data_offsets"][0]
    return np.frombuffer(self._data, dtype, count, offset).reshape(shape)

  def __contains__(self, name: object) -> bool:
    return name in self._header

  def __iter__(self) -> Iterator[str]:
    return iter(self._header)

  def __len__(self) -> int:
    return len(self._header)


class _Shards(Mapping[str, np.ndarray]):
  """The tensors of an index file, each in the shard that the index names."""

  def __init__(self, index: Path):
    weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    shards: dict[str, _File] = {}
    for shard in sorted(set(weight_map.values())):
      path = index.parent / shard
      if not path.is_file():
        raise FileNotFoundError(f"{index} names {shard}, which is not there")
      shards[shard] = _File(path)
    for name, shard in weight_map.items():
      if name not in shards[shard]:
        raise ValueError(f"{index} says that {name!r} is in {shard}, which lacks it")
    self._index = index
    self._files = {name: shards[shard] for name, shard in weight_map.items()}

  def __getitem__(self, name: str) -> np.ndarray:
    if name not in self._files:
      raise KeyError(f"{self._index} has no tensor {name!r}{nearest(name, self._files)}")
    return self._files[name][name]

  def __contains__(self, name: object) -> bool:
    return name in self._files

  def __iter__(self) -> Iterator[str]:
    return iter(self._files)

  def __len__(self) -> int:
    return len(self._files)


def read(path: str | os.PathLike[str]) -> Mapping[str, np.ndarray]:
  """The tensors of a `.safetensors` file, or of a model directory (single file or shards).

  Opening reads the headers only. A tensor is a read-only view of the mapped file, so it
  costs nothing until its values are used.

  Raises:
    FileNotFoundError: nothing there, or a shard that the index names is missing.
    ValueError: a broken file, or an index that names a tensor which its shard lacks.
  """
  path = Path(path)
  if path.is_file():
    return _File(path)
  if not path.is_dir():
    raise FileNotFoundError(f"no such file or directory: {path}")
  if (path / SINGLE).is_file():
    return _File(path / SINGLE)
  if (path / INDEX).is_file():
    return _Shards(path / INDEX)
  raise FileNotFoundError(f"{path} has neither {SINGLE} nor {INDEX}")


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
  """What the header of a `.safetensors` file says beside its tensors.

  Raises: as `read`.
  """
  return _File(Path(path)).metadata


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[BinaryIO]:
  """A file that appears under its name complete or not at all."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("wb") as file:
      yield file
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def write(
  path: str | os.PathLike[str],
  tensors: Mapping[str, Any],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes one file, atomically.

  Args:
    path: the file; its directory exists.
    tensors: anything numpy can view as an array (JAX arrays too), of any memory layout.
    metadata: strings for the header; `{"format": "pt"}`, which transformers asks for, if None.

  Raises:
    ValueError: a dtype that the format does not have.
  """
  arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
  for name, array in arrays.items():
    if array.dtype not in _NAMES:
      raise ValueError(f"{name!r} has dtype {array.dtype}, which safetensors does not have")
  # Widest dtypes first, then by name: every tensor is then aligned to its own item size.
  order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
  header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
  offset = 0
  for name in order:
    array = arrays[name]
    header[name] = {
      "dtype": _NAMES[array.dtype],
      "shape": list(array.shape),
      "data_offsets": [offset, offset + array.nbytes],
    }
    offset += array.nbytes
  encoded = json.dumps(header, separators=(",", ":")).encode()
  encoded += b" " * (-len(encoded) % 8)
  with _atomic(Path(path)) as file:
    file.write(struct.pack("<Q", len(encoded)))
    file.write(encoded)
    for name in order:
      # Custom dtypes such as bfloat16 have no buffer protocol; their bytes do.
      file.write(arrays[name].reshape(-1).view(np.uint8).data)


def write_sharded(
  directory: str | os.PathLike[str],
  tensors: Mapping[str, Any],
  max_shard_bytes: int = 5 * 10**9,
  header: Mapping[str, str] | None = None,
) -> None:
  """Writes `model.safetensors`, or shards and their index when it would be too large.

  Shards are filled in the order of `tensors`; one tensor larger than the limit has a shard
  of its own. Weights that stood in the directory before are removed, the old index first,
  so that no reader ever sees a mixture of the two. What `header` says stands in every file, beside
  the `{"format": "pt"}` that transformers asks for.
  """
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  shards: list[dict[str, Any]] = [{}]
  filled = total = 0
  for name, value in tensors.items():
    if shards[-1] and filled + value.nbytes > max_shard_bytes:
      shards.append({})
      filled = 0
    shards[-1][name] = value
    filled += value.nbytes
    total += value.nbytes
  (directory / INDEX).unlink(missing_ok=True)
  if len(shards) == 1:
    names = [SINGLE]
  else:
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    (directory / SINGLE).unlink(missing_ok=True)
  for name, shard in zip(names, shards, strict=True):
    write(directory / name, shard, {"format": "pt", **(header or {})})
  for stale in directory.glob("model-?????-of-?????.safetensors"):
    if stale.name not in names:
      stale.unlink()
  if len(shards) > 1:
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    with _atomic(directory / INDEX) as file:
      file.write((json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
