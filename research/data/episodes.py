"""In-context episodes: rows of prompt and completion after solved ones, as one prompt."""

from __future__ import annotations

from typing import Any

import numpy as np

from research.data.examples import BadRow, Report
from research.data.source import Row, Source


class Episodes:
  """A source of problems that show how others are solved (Brown et al. 2020).

  Episode `i` asks row `i` of `asked` (modulo their number) and keeps its other columns; which
  rows of `shown` come before it, all different and never the one it asks, follows from the seed
  and `i` alone.

  Args:
    asked: rows with `prompt` and `completion`, strings or lists of messages.
    shown: where exemplars are drawn from; may be `asked`.
    shots: exemplars of an episode.
    separator: after each exemplar, where rows are strings.
    size: number of episodes; by default that of `asked`.
    seed: of the choice.

  Raises:
    ValueError: there are too few rows to show.
  """

  def __init__(
    self,
    asked: Source,
    shown: Source,
    *,
    shots: int,
    separator: str,
    size: int | None,
    seed: int,
  ):
    self._asked, self._shown = asked, shown
    self._shots, self._separator, self._seed = shots, separator, seed
    self._size = len(asked) if size is None else size
    self._others = len(shown) - (shown is asked)
    if not 0 <= shots <= self._others:
      raise ValueError(
        f"episodes of {shots} shots show as many other rows, and there are {self._others}"
      )
    self.name = f"{asked.name} after {shots} shots"
    of = asked.fingerprint if shown is asked else f"{asked.fingerprint}<{shown.fingerprint}"
    self.fingerprint = f"{of}/{shots}/{separator!r}/{self._size}/{seed}"
    self.report = Report()
    for part in {id(part): part for part in (asked, shown)}.values():
      self.report.merge(part.report)

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Row:
    at = index % len(self._asked)
    rng = np.random.default_rng([self._seed, index])
    drawn = rng.choice(self._others, self._shots, replace=False)
    if self._shown is self._asked:
      drawn += drawn >= at
    row = self._asked[at]
    asked = _column(row, "prompt")
    prompt = type(asked)()
    for number in drawn:
      solved = [_column(self._shown[int(number)], name) for name in ("prompt", "completion")]
      if {type(part) for part in solved} != {type(asked)}:
        raise BadRow("of the wrong type", "an episode mixes strings and messages")
      prompt += solved[0] + solved[1]
      if isinstance(asked, str):
        prompt += self._separator
    return {**row, "prompt": prompt + asked}

  def origin(self, index: int) -> int:
    return self._asked.origin(index % len(self._asked))


def _column(row: Row, name: str) -> Any:
  value = row.get(name)
  if not isinstance(value, str | list):
    raise BadRow("without its columns", f"an episode needs {name!r}, a string or messages")
  return value
