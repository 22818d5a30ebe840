"""Local files to ArrayRecord, once: the TFDS builder behind the `jsonl` and `text` sources.

A prepared file is a directory `NAME-HASH` of the cache, where HASH is that of the file's
bytes and of how they are read. It is built in a directory of its own and renamed when it
is whole, so any number of processes may prepare the same file at once, and one that is
killed leaves nothing that looks finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from research.core import cache as cache_lib
from research.core import tree
from research.data.examples import BadRow, Report
from research.data.formats import columns_of

FORMATS = ("jsonl", "text")
SPLITS = ("document", "paragraph", "line")
_LAYOUT = 1  # Part of the hash: raise it when what is stored changes.
_SUMMARY = "prepared.json"


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A file prepared.

  Attributes:
    directory: where its ArrayRecord files are.
    fingerprint: the hash of its content and of how it was read.
    rows: how many usable rows it holds.
    columns: for each set of columns that occurs, how many rows have just these.
    report: the rows that are not there, because they could not be read.
    fresh: whether this call built it.
  """

  directory: Path
  fingerprint: str
  rows: int
  columns: dict[tuple[str, ...], int]
  report: Report
  fresh: bool


def cache_directory(cache: str | os.PathLike[str] | None = None) -> Path:
  """Where prepared files go: `cache`, or `datasets` in $RESEARCH_CACHE or ~/.cache/research."""
  if cache is not None:
    return Path(cache).expanduser()
  return cache_lib.directory() / "datasets"


def fingerprint_of(path: Path, file_format: str, split_by: str) -> str:
  """16 hex digits of the SHA-256 of the file's bytes and of how they are read."""
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256")
  digest.update(f"\0{_LAYOUT}\0{file_format}\0{split_by}".encode())
  return digest.hexdigest()[:16]


def prepare(
  path: str | os.PathLike[str],
  *,
  file_format: str,
  split_by: str = "document",
  name: str | None = None,
  cache: str | os.PathLike[str] | None = None,
) -> Prepared:
  """Builds the ArrayRecord files of a JSONL or text file, or finds them built.

  Args:
    path: a file. Its last modification does not matter, its bytes do.
    file_format: `jsonl` (an object a line) or `text`.
    split_by: what a row of a text is: the whole `document`, a `paragraph` (parted by blank
      lines) or a `line`. Without effect on JSONL.
    name: begins the directory's name; the file's by default. Only for people's eyes: a
      file already prepared under another name is found.
    cache: see `cache_directory`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: an argument is not one of those above, or the file has no usable row.
  """
  path = Path(path).expanduser()
  _check("file format", file_format, FORMATS)
  _check("split_by", split_by, SPLITS)
  name = path.stem if name is None else name
  if name != Path(name).name:
    raise ValueError(f"name {name!r} is not a plain directory name")
  if not path.is_file():
    raise FileNotFoundError(f"no data file at {path}")
  split_by = split_by if file_format == "text" else ""
  fingerprint = fingerprint_of(path, file_format, split_by)
  root = cache_directory(cache)
  if found := _find(root, fingerprint):
    return _read(found, fingerprint, path, fresh=False)
  root.mkdir(parents=True, exist_ok=True)
  final = root / f"{name}-{fingerprint}"
  with tempfile.TemporaryDirectory(dir=root, prefix=".incomplete-") as scratch:
    building = Path(scratch) / "dataset"
    _build(path, file_format, split_by, building)
    try:
      building.rename(final)
    except OSError:
      # Someone else was faster; anything else that went wrong is an error.
      if not _find(root, fingerprint):
        raise
  return _read(_find(root, fingerprint) or final, fingerprint, path, fresh=True)


def rows_of(path: Path, file_format: str, split_by: str) -> Iterator[tuple[int, dict | BadRow]]:
  """`(index, row)` of a file, where a row that cannot be read is a `BadRow` instead.

  Indices count from 0: the lines of the file, blank ones too, or its paragraphs. Blank
  rows are no rows.
  """
  for index, raw in enumerate(_pieces(path, file_format, split_by)):
    if not raw.strip():
      continue
    try:
      text = raw.decode("utf-8-sig" if index == 0 else "utf-8")
      row = _object_of(text) if file_format == "jsonl" else {"text": text}
    except UnicodeError as error:
      yield index, BadRow("not UTF-8", str(error))
    except BadRow as error:
      yield index, error
    else:
      yield index, row


def _pieces(path: Path, file_format: str, split_by: str) -> Iterator[bytes]:
  """The bytes of each row: JSON lines, or a text's lines, paragraphs or all of it."""
  if split_by == "document":
    yield path.read_bytes().replace(b"\r\n", b"\n")
    return
  paragraph: list[bytes] = []
  with path.open("rb") as file:
    for line in file:
      line = line.rstrip(b"\r\n")
      if file_format == "jsonl" or split_by == "line":
        yield line
      elif line.strip():
        paragraph.append(line)
      elif paragraph:
        yield b"\n".join(paragraph)
        paragraph = []
  if paragraph:
    yield b"\n".join(paragraph)


def _object_of(line: str) -> dict[str, Any]:
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise BadRow("not JSON", str(error)) from error
  if not isinstance(row, dict):
    raise BadRow("not a JSON object", f"a {type(row).__name__}")
  # JSON can spell lone surrogates, which are no text: this raises for them.
  json.dumps(row, ensure_ascii=False).encode()
  return row


class LocalRows(tfds.core.GeneratorBasedBuilder):
  """The rows of one local file, in its order, each as JSON beside its index."""

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, *, path: Path, row_format: str, split_by: str, data_dir: Path):
    self._path = path
    self._row_format = row_format
    self._split_by = split_by
    self.rows = 0
    self.columns: dict[tuple[str, ...], int] = {}
    self.report = Report()
    super().__init__(data_dir=data_dir, file_format="array_record")

  def _info(self) -> tfds.core.DatasetInfo:
    features = {"index": tfds.features.Scalar(np.int64), "row": tfds.features.Text()}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    del dl_manager  # The file is local.
    return {"train": self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = rows_of(self._path, self._row_format, self._split_by)
    for index, row in tqdm.tqdm(rows, f"preparing {self._path.name}", unit=" rows", delay=2):
      if isinstance(row, BadRow):
        self.report.add(str(self._path), row.reason, index, row.detail)
        continue
      columns = columns_of(row)
      self.columns[columns] = self.columns.get(columns, 0) + 1
      self.rows += 1
      yield index, {"index": index, "row": json.dumps(row, ensure_ascii=False)}
    if not self.rows:
      raise ValueError(f"{self._path} has no usable row; {self.report or 'it is empty'}")


def _build(path: Path, file_format: str, split_by: str, directory: Path) -> None:
  builder = LocalRows(path=path, row_format=file_format, split_by=split_by, data_dir=directory)
  # TFDS speaks of downloads here, of which there are none; our own bar tells the progress.
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(
        download_dir=directory.parent / "downloads",
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
      )
  finally:
    tfds.enable_progress_bar()
  summary = {
    "rows": builder.rows,
    "columns": [[list(columns), count] for columns, count in builder.columns.items()],
    "report": builder.report.to_json(),
  }
  (directory / _SUMMARY).write_text(json.dumps(summary, indent=2, ensure_ascii=False))


def _find(root: Path, fingerprint: str) -> Path | None:
  return next((p.parent for p in sorted(root.glob(f"*-{fingerprint}/{_SUMMARY}"))), None)


def _read(directory: Path, fingerprint: str, path: Path, *, fresh: bool) -> Prepared:
  summary = json.loads((directory / _SUMMARY).read_text())
  return Prepared(
    directory=directory,
    fingerprint=fingerprint,
    rows=summary["rows"],
    columns={tuple(columns): count for columns, count in summary["columns"]},
    # The same bytes may since lie elsewhere.
    report=Report.from_json([{**entry, "source": str(path)} for entry in summary["report"]]),
    fresh=fresh,
  )


def records(prepared: Prepared) -> Any:
  """The TFDS data source of a prepared file: `{"index": int, "row": bytes of JSON}` rows."""
  version = prepared.directory / LocalRows.name / str(LocalRows.VERSION)
  return tfds.builder_from_directory(version).as_data_source(split="train")


def _check(what: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise ValueError(
      f"{what} {value!r} is none of {', '.join(choices)}{tree.nearest(value, choices)}"
    )
