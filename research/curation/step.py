"""What a step of curation is: it reads the rows that are left, and tells which of them go.

Steps never copy rows. What is left of a source is the indices of its rows, columns of numbers that
steps added, and changes of texts that are made anew where a row is read; so memory holds a few
numbers a row, and whatever a step itself has to remember.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from research.data import sources, texts
from research.data.examples import BadRow, number_of
from research.data.source import Row, Source

EXAMPLES = 5  # that are kept of each rule, for a person to judge it by
_SHOWN = 300  # characters of an example's text


@dataclasses.dataclass(frozen=True)
class Rows:
  """Rows of a source that are left, as they are by now.

  indices: of the source, ascending.
  columns: name -> a number for each row of the source, NaN where there is none.
  changes: `row -> row`, in this order.
  """

  source: Source
  indices: np.ndarray
  columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  changes: Sequence[Callable[[Row], Row]] = ()

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, position: int) -> Row:
    index = int(self.indices[position])
    row = self.source[index]
    for change in self.changes:
      row = change(row)
    return row | {name: float(values[index]) for name, values in self.columns.items()}

  def text(self, position: int) -> str:
    """All texts of the row at `position` as one."""
    return texts.joined(self[position])

  def number(self, position: int, column: str) -> float:
    """The number that a column has in the row at `position`.

    Raises:
      ValueError: there is none.
    """
    try:
      return number_of(self[position], column)
    except BadRow as error:
      raise ValueError(f"{self.source.name} row {self.origin(position)} is {error}") from error

  def origin(self, position: int) -> int | str:
    """Under what people know the row: its line in the file, from 0; in a mixture PART:LINE."""
    index = int(self.indices[position])
    origin = self.source.origin(index)
    if isinstance(self.source, sources.Mixture):
      return f"{self.source.at(index)[0]}:{origin}"
    return origin

  def positions(self, what: str) -> Iterator[int]:
    """0, 1, ... for each row, with a progress bar if that takes seconds."""
    bar = tqdm.tqdm(range(len(self)), what, unit=" rows", delay=2, leave=False)
    yield from bar


@dataclasses.dataclass
class Ledger:
  """What a step finds.

  directory: a step's own, where it may keep what it would not do again after an interruption.
  dropped: of each row, by its position, whether it goes.
  rules: rule -> how many rows it takes away, and examples.
  columns: name -> a number a row, by position, that the step adds.
  figures: what else it tells, for JSON.
  """

  rows: Rows
  directory: Path
  dropped: np.ndarray = dataclasses.field(init=False)
  rules: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  figures: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    self.dropped = np.zeros(len(self.rows), bool)

  def drop(self, position: int, rule: str, detail: str, text: str) -> None:
    """The row at `position`, whose text this is, goes, by `rule`, in this case for `detail`."""
    self.dropped[position] = True
    self.told(position, rule, detail, text)

  def told(self, position: int, rule: str, detail: str, text: str) -> None:
    """Counts the row under `rule`, without that it goes."""
    entry = self.rules.setdefault(rule, {"rows": 0, "examples": []})
    entry["rows"] += 1
    if len(entry["examples"]) < EXAMPLES:
      shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
      example = {"row": self.rows.origin(position), "detail": detail, "text": shown}
      entry["examples"].append(example)

  def numbers(
    self, name: str, find: Callable[[int], Iterable[Sequence[float] | np.ndarray]]
  ) -> np.ndarray:
    """A number a row, float64, by position; an interrupted step finds those that it had again.

    Args:
      name: of the file in `directory`, without its suffix.
      find: `first -> numbers` of the rows from the one at `first` on, in their order, some at a
        time, each of which is written at once.
    """
    file = self.directory / f"{name}.f64"
    file.touch()
    done = file.stat().st_size // 8
    if done < len(self.rows):
      with file.open("r+b") as opened:
        opened.truncate(8 * done)  # a number may have been cut
        opened.seek(0, 2)
        for some in find(done):
          opened.write(np.asarray(some, np.float64).tobytes())
          opened.flush()
    return np.fromfile(file, np.float64)


class Step:
  """A rule, or several of a kind; its fields are its section of a config.

  A step that cannot be (a number out of range, a library that is missing) raises ValueError when it
  is made.
  """

  def judge(self, rows: Rows, ledger: Ledger) -> None:
    """Writes into `ledger` what becomes of each of the rows."""
    raise NotImplementedError

  def changed(self, row: Row) -> Row:
    """The row as it is for steps behind this one; the same row gives the same."""
    return row

  def reads(self) -> Any:
    """What the judgement depends on beside fields and rows, such as files' contents; for JSON."""
    return None
