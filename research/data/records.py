"""Sources that are ArrayRecord files: prepared local files, and TensorFlow Datasets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.core import tree
from research.data.examples import BadRow, Report
from research.data.source import Row, fingerprint


class LocalFile:
  """The rows of a prepared JSONL or text file, in the file's order."""

  def __init__(self, path: str, file_format: str, split_by: str, cache: str | None):
    from research.data import prepare  # TFDS takes a second to import.

    prepared = prepare.prepare(path, file_format=file_format, split_by=split_by, cache=cache)
    self.name = str(path)
    self.fingerprint = prepared.fingerprint
    self.report = prepared.report
    self._directory = prepared.directory
    self._records = prepare.records(prepared)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Row:
    return json.loads(_intact(self._records, index, self._directory)["row"])

  def origin(self, index: int) -> int:
    return int(_intact(self._records, index, self._directory)["index"])


def jsonl(path: str, cache: str | None = None) -> LocalFile:
  """A file with a JSON object a line."""
  return LocalFile(path, "jsonl", "document", cache)


def text(path: str, split_by: str = "document", cache: str | None = None) -> LocalFile:
  """A text file, as one row (`document`) or one a `paragraph` or `line`.

  The whole file is a document unless told otherwise: lines are rarely what a language
  model should see alone. A document longer than a row needs `on_long_row="split"`.
  """
  return LocalFile(path, "text", split_by, cache)


class TFDS:
  """A split of a TensorFlow Datasets data set, prepared as ArrayRecord if it is not yet."""

  def __init__(self, dataset: str, split: str = "train", data_dir: str | None = None):
    import tensorflow_datasets as tfds  # A second to import.

    try:
      builder = tfds.builder(dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
      hint = tree.nearest(dataset, tfds.list_builders(with_community_datasets=False))
      raise ValueError(f"no TFDS data set {dataset!r}{hint}") from error
    if not builder.data_path.exists():
      builder = tfds.builder(dataset, data_dir=data_dir, file_format="array_record")
      builder.download_and_prepare()
    self.name = f"{builder.info.full_name}[{split}]"
    self.report = Report()
    self._directory = builder.data_path
    self._records = builder.as_data_source(split=split)
    splits = {
      name: (info.num_examples, info.num_bytes) for name, info in builder.info.splits.items()
    }
    self.fingerprint = fingerprint([self.name, sorted(splits.items())])

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Row:
    row = _intact(self._records, index, self._directory)
    return {name: _decoded(value, name) for name, value in row.items()}

  def origin(self, index: int) -> int:
    return index


def _intact(records: Any, index: int, directory: Any) -> Row:
  """The record, of files in `directory`.

  Raises:
    OSError: its file is damaged.
  """
  try:
    row = records[index]
  except RuntimeError as error:
    reason = " ".join(str(error).split())
    raise OSError(f"{_DAMAGED.format(directory)}: {reason}") from error
  if None in row.values():  # which is what is read beyond the end of a file that was cut
    raise OSError(f"{_DAMAGED.format(directory)}: record {index} is missing")
  return row


_DAMAGED = "prepared data in {} are damaged (remove them, and they are made again)"


def _decoded(value: Any, column: str) -> Any:
  """TFDS's bytes, arrays and NumPy scalars as strings, lists and numbers."""
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError as error:
      raise BadRow("not UTF-8", f"column {column!r}: {error}") from error
  if isinstance(value, Mapping):
    return {key: _decoded(item, column) for key, item in value.items()}
  if isinstance(value, np.ndarray):
    value = value.tolist()
  if isinstance(value, (list, tuple)):
    return [_decoded(item, column) for item in value]
  return value.item() if isinstance(value, np.generic) else value
