"""Rows of a source as examples: read, checked, fitted; what is dropped is counted."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import grain
import numpy as np

from research.data import denoising, formats
from research.data.answers import KINDS
from research.data.examples import BadRow, Example, Report
from research.data.source import Source

if TYPE_CHECKING:
  from research.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Pairs:
  """That examples are pairs, for an encoder-decoder.

  start_id: the token that its decoder begins with.
  target_length: tokens of a row's targets, start tokens among them.
  """

  start_id: int
  target_length: int


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a source as its examples, none if it was dropped."""

  index: int
  examples: tuple[Example, ...]


class Rows(grain.sources.RandomAccessDataSource):
  """Row `i` of a source as examples, before any corruption; all kept if `keep`.

  length: the most tokens of an example, or of a pair's source.
  answers: a key of `answers.KINDS`, where rows are about answers.
  """

  def __init__(
    self,
    source: Source,
    tokenizer: Tokenizer,
    config: Any,
    report: Report,
    keep: bool,
    denoiser: denoising.Denoiser | None,
    pairs: Pairs | None,
    length: int,
    answers: str | None = None,
  ):
    self._source = source
    self._tokenizer = tokenizer
    self._denoiser = denoiser
    # A denoiser makes pairs of documents.
    self._pairs = None if denoiser else pairs
    self._answers = KINDS[answers] if answers else None
    self._length = length
    if denoiser:
      self._length = denoiser.raw_length(length, pairs.target_length if pairs else None)
    self._completion_only = config.completion_only
    self._stop_on_bad = config.on_bad_row == "stop"
    self._on_long_row = config.on_long_row
    self._report = report
    self._kept: dict[int, tuple[Example, ...]] | None = {} if keep else None

  def of_length(self, length: int) -> Rows:
    """The same rows of a decoder as examples of at most so many tokens."""
    rows = copy.copy(self)
    rows._length = self._denoiser.raw_length(length, None) if self._denoiser else length
    rows._kept = None if self._kept is None else {}
    return rows

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: Any) -> Row:
    index = int(index)
    if self._kept is None:
      return Row(index, self._read(index))
    if index not in self._kept:
      self._kept[index] = self._read(index)
    return Row(index, self._kept[index])

  def _read(self, index: int) -> tuple[Example, ...]:
    try:
      row = self._source[index]
      if self._answers:
        example = self._answers.read(row, self._tokenizer)
      elif self._pairs:
        example = formats.tokenize_pair(row, self._tokenizer, start_id=self._pairs.start_id)
      else:
        example = formats.tokenize(
          row,
          self._tokenizer,
          completion_only=self._completion_only,
          words=self._denoiser is not None and self._denoiser.words,
        )
      if self._denoiser:
        self._denoiser.check(example)
    except BadRow as error:
      return self._drop(index, error, "on_bad_row", self._stop_on_bad)
    try:
      if self._answers:
        piece = self._answers.fit(example, self._length, self._on_long_row)
        if piece is not example:
          self._count(index, f"truncated to {self._length} tokens", "an answer with its prompt")
        return (piece,)
      if self._pairs:
        lengths = (self._length, self._pairs.target_length)
        piece = formats.fit_pair(example, *lengths, self._on_long_row)
        if piece is not example:
          self._count(index, "truncated to {} and {} tokens".format(*lengths), "as a pair")
        return (piece,)
      pieces = formats.fit(example, self._length, self._on_long_row)
    except BadRow as error:
      return self._drop(index, error, "on_long_row", self._on_long_row == "stop")
    if self._denoiser:
      # A last piece of one or two tokens is no problem; the row's others are.
      pieces = tuple(piece for piece in pieces if _accepts(self._denoiser, piece))
    if len(example) > self._length:
      verb = "truncated" if self._on_long_row == "truncate" else "split"
      self._count(index, f"{verb} to {self._length} tokens", f"it has {len(example)}")
    return pieces

  def _drop(self, index: int, error: BadRow, setting: str, stop: bool) -> tuple[Example, ...]:
    if stop:
      raise ValueError(
        f"{self._source.name} row {self._source.origin(index)} is {error} "
        f"(data.{setting}='drop' leaves such rows out and counts them)"
      ) from error
    self._count(index, f"dropped, {error.reason}", error.detail)
    return ()

  def _count(self, index: int, reason: str, detail: str) -> None:
    self._report.add(self._source.name, reason, self._source.origin(index), detail)


class Some(grain.sources.RandomAccessDataSource):
  """Those of `rows` that have these indices, in their order."""

  def __init__(self, rows: Rows, indices: np.ndarray):
    self._rows, self._indices = rows, indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: Any) -> Row:
    return self._rows[self._indices[int(index)]]


def _accepts(denoiser: denoising.Denoiser, example: Example) -> bool:
  try:
    denoiser.check(example)
  except BadRow:
    return False
  return True
