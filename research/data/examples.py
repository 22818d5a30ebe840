"""A document as arrays, what makes a row unusable, and the account of such rows.

Axis legend: T tokens of one document.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from research.core import tree


class BadRow(ValueError):
  """A row that cannot be used: `reason` is what it is counted under, `detail` its own case."""

  def __init__(self, reason: str, detail: str):
    super().__init__(f"{reason}: {detail}")
    self.reason = reason
    self.detail = detail


@dataclasses.dataclass(frozen=True)
class Example:
  """One document, or a few that belong together. Invariant: arrays but `source` are `[T]`.

  Attributes:
    tokens: int32.
    weights_mask: bool, whether the token is learnt when it is the next one. The first
      token of a document is nobody's next, so that its entry counts after virtual tokens alone.
    prefix: so many of the first tokens see each other both ways.
    task: the number of its part of a mixture.
    labels: int32, what is predicted at each token in place of the next one; `weights_mask` then
      tells at which.
    types: int32, kinds of tokens (BERT's first and second text).
    words: int, the number of each token's word, -1 where it has none; where it was asked for.
    parts: tokens of each document, if it is several: an anchor, a positive, maybe a negative.
      `weights_mask` is then True at the first token, once an example.
    closing: so many of the last tokens close a text, and stay when it is truncated.
    source: int32, what an encoder reads, of a pair; `tokens` then are the decoder's, of which the
      first is its start token.
    kept: what was kept of a teacher at each token, `(ids [T, K] int32, log-probabilities [T, K]
      float16)`, see `data.kept`.
    rival: another answer after the same prompt, which has the next row of the batch.
    told: numbers of the whole example, which a batch has for each row.
    row: the number of its row in the source.
  """

  tokens: np.ndarray
  weights_mask: np.ndarray
  prefix: int = 0
  task: int = 0
  labels: np.ndarray | None = None
  types: np.ndarray | None = None
  words: np.ndarray | None = None
  parts: tuple[int, ...] = ()
  closing: int = 0
  source: np.ndarray | None = None
  kept: tuple[np.ndarray, np.ndarray] | None = None
  rival: Example | None = None
  told: Mapping[str, float] = dataclasses.field(default_factory=dict)
  row: int = -1

  def __len__(self) -> int:
    return len(self.tokens)

  def __getitem__(self, part: slice | np.ndarray) -> Example:
    names = ("tokens", "weights_mask", "labels", "types", "words")
    arrays = {name: getattr(self, name) for name in names}
    return dataclasses.replace(
      self, **{name: array[part] for name, array in arrays.items() if array is not None}
    )

  def led_by(self, virtual_tokens: int) -> Example:
    """With virtual tokens, of ids -1, -2, ..., in front.

    The same tokens are learnt as without, and the first, which the last virtual token predicts.
    """
    if not virtual_tokens:
      return self
    ids = -1 - np.arange(virtual_tokens, dtype=self.tokens.dtype)
    learnt = np.concatenate([np.zeros(virtual_tokens, bool), self.weights_mask])
    return dataclasses.replace(
      self,
      tokens=np.concatenate([ids, self.tokens]),
      weights_mask=learnt,
      prefix=self.prefix and virtual_tokens + self.prefix,
      rival=self.rival and self.rival.led_by(virtual_tokens),
    )

  @property
  def form(self) -> tuple[str, ...]:
    """The keys that a batch of such examples has, beside those of every batch."""
    first = "roles" if self.parts else "targets" if self.labels is None else "labels"
    return (first,) if self.types is None else (first, "types")

  @property
  def learns(self) -> bool:
    """Whether any token of it carries loss."""
    return bool(self.weights_mask[1 if self.form[0] == "targets" else 0 :].any())


class Report:
  """What became of rows that could not be used as they are, by source and reason.

  A row counts once a reason however often it is met, so that epochs and resumed runs do
  not inflate the figures. Safe to fill in one thread and print in another.
  """

  def __init__(self) -> None:
    self._rows: dict[tuple[str, str], dict[int, str]] = {}
    self._lock = threading.Lock()

  def add(self, source: str, reason: str, index: int, detail: str) -> None:
    """Counts row `index` of `source` under `reason`."""
    with self._lock:
      self._rows.setdefault((source, reason), {}).setdefault(index, detail)

  def merge(self, other: Report) -> None:
    """Adds everything that `other` counted."""
    for entry in other.to_json():
      for index, detail in entry["rows"]:
        self.add(entry["source"], entry["reason"], index, detail)

  def count(self, reason: str | None = None) -> int:
    """The number of rows counted under `reason`, or under any."""
    with self._lock:
      return sum(len(rows) for (_, why), rows in self._rows.items() if reason in (None, why))

  def __bool__(self) -> bool:
    return self.count() > 0

  def to_json(self) -> list[dict[str, Any]]:
    """`[{"source", "reason", "rows": [[index, detail], …]}, …]`, indices ascending."""
    with self._lock:
      return [
        {"source": source, "reason": reason, "rows": [list(row) for row in sorted(rows.items())]}
        for (source, reason), rows in sorted(self._rows.items())
      ]

  @classmethod
  def from_json(cls, entries: Iterable[Mapping[str, Any]]) -> Report:
    """The report that `to_json` wrote."""
    report = cls()
    for entry in entries:
      for index, detail in entry["rows"]:
        report.add(entry["source"], entry["reason"], index, detail)
    return report

  def __str__(self) -> str:
    """A line a reason with its count, its first rows (from 0) and the first one's case."""
    lines = []
    for entry in self.to_json():
      rows = entry["rows"]
      first = ", ".join(str(index) for index, _ in rows[:5]) + (", …" if len(rows) > 5 else "")
      noun = "row" if len(rows) == 1 else "rows"
      lines.append(
        f"{entry['source']}: {len(rows):,} {noun} {entry['reason']} ({noun} {first}): {rows[0][1]}"
      )
    return "\n".join(lines)


def text_of(row: Mapping[str, Any], column: str) -> str:
  """The string in a column; BadRow for anything else."""
  value = row[column]
  if not isinstance(value, str):
    raise BadRow("of the wrong type", f"column {column!r} is {type(value).__name__}, not a string")
  return value


def number_of(row: Mapping[str, Any], column: str) -> float:
  """The number in a column; BadRow where there is none."""
  value = row.get(column)
  if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
    raise BadRow(
      "without a number", f"column {column!r} holds {value!r}{tree.nearest(column, row)}"
    )
  return float(value)


def messages_of(row: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
  """The messages in a column as a list of dicts; BadRow for anything else.

  TFDS hands a sequence of dicts as a dict of lists.
  """
  value = row[column]
  if isinstance(value, Mapping) and all(isinstance(v, list) for v in value.values()):
    value = [dict(zip(value, fields, strict=True)) for fields in zip(*value.values(), strict=True)]
  if not isinstance(value, list) or not value:
    raise BadRow("of the wrong type", f"column {column!r} is not a list of messages")
  for message in value:
    if not isinstance(message, Mapping) or "role" not in message:
      raise BadRow(
        "of the wrong type", f"column {column!r} holds {message!r}; a message has role and content"
      )
  return [dict(message) for message in value]
