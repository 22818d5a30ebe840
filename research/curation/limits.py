"""Limits on what is counted or given: length, a list of words, any column of numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.curation.step import Ledger, Rows, Step

UNITS = ("characters", "words", "tokens")


@dataclasses.dataclass(frozen=True)
class Length(Step):
  """Texts from `minimum` to `maximum` (None: any) of a unit.

  unit: "characters", "words" (that white space separates) or "tokens".
  tokenizer: of tokens, a directory with a Hugging Face tokenizer; special tokens do not count.
  """

  minimum: int = 1
  maximum: int | None = None
  unit: str = "characters"
  tokenizer: str = ""

  def __post_init__(self) -> None:
    if self.unit not in UNITS:
      raise ValueError(f"length.unit is one of {', '.join(UNITS)}, not {self.unit!r}")
    if (self.unit == "tokens") != bool(self.tokenizer):
      raise ValueError("length needs a tokenizer for the unit 'tokens', and for no other")
    if self.tokenizer and not self._file.is_file():
      raise ValueError(f"length.tokenizer: there is no file {str(self._file)!r}")

  def reads(self) -> Any:
    return hashlib.sha256(self._file.read_bytes()).hexdigest() if self.tokenizer else None

  def judge(self, rows: Rows, ledger: Ledger) -> None:
    count = self._counter()
    for position in rows.positions("lengths"):
      text = rows.text(position)
      length = count(text)
      if length < self.minimum:
        ledger.drop(position, "too short", f"{length} {self.unit}", text)
      elif self.maximum is not None and length > self.maximum:
        ledger.drop(position, "too long", f"{length} {self.unit}", text)

  @property
  def _file(self) -> Path:
    return Path(self.tokenizer) / "tokenizer.json"

  def _counter(self) -> Any:
    if self.unit == "tokens":
      from research.data.tokenizer import Tokenizer

      tokenizer = Tokenizer.from_directory(self.tokenizer)
      return lambda text: len(tokenizer.encode(text, add_special=False))
    return len if self.unit == "characters" else lambda text: len(text.split())


@dataclasses.dataclass(frozen=True)
class WordList(Step):
  """Texts with too many of the words in a file, such as those that nobody should read.

  path: a file with a word or a phrase a line; case does not count, and only whole words do.
  most: how many a text may have; None: none, or any number where there is a most_share.
  most_share: the most that they may be of its words.
  """

  path: str
  most: int | None = None
  most_share: float | None = None

  def __post_init__(self) -> None:
    if not Path(self.path).is_file():
      raise ValueError(f"word_list.path: there is no file {self.path!r}")
    if not self._phrases():
      raise ValueError(f"word_list.path: {self.path} has no words")

  def reads(self) -> Any:
    return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()

  def judge(self, rows: Rows, ledger: Ledger) -> None:
    # The longest first, so that a phrase is not taken for its first word.
    phrases = sorted(self._phrases(), key=len, reverse=True)
    form = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, phrases))})(?!\w)", re.IGNORECASE)
    most = 0 if self.most is None and self.most_share is None else self.most
    for position in rows.positions("listed words"):
      text = rows.text(position)
      found = form.findall(text)
      share = len(found) / max(1, len(text.split()))
      detail = f"{len(found)}, {share:.1%} of words, such as {found[0]!r}" if found else ""
      if most is not None and len(found) > most:
        ledger.drop(position, "too many listed words", detail, text)
      elif self.most_share is not None and share > self.most_share:
        ledger.drop(position, "too large a share of listed words", detail, text)

  def _phrases(self) -> list[str]:
    lines = Path(self.path).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


@dataclasses.dataclass(frozen=True)
class Column(Step):
  """Rows whose number in a column lies within limits.

  column: of the source, or one that a step before wrote.
  minimum, maximum: of the number.
  percentiles: of the numbers of all rows that are left, from which to which to keep: (0, 60) after
    `perplexity` is CCNet's way to keep what is likely (Wenzek et al. 2019, arXiv:1911.00359,
    section 3.4).
  """

  column: str
  minimum: float | None = None
  maximum: float | None = None
  percentiles: Sequence[float] = (0.0, 100.0)

  def __post_init__(self) -> None:
    low, high = self.percentiles if len(self.percentiles) == 2 else (0, -1)
    if not 0 <= low < high <= 100:
      raise ValueError(f"column.percentiles are two from 0 to 100, not {self.percentiles}")

  def judge(self, rows: Rows, ledger: Ledger) -> None:
    values = np.array(
      [rows.number(position, self.column) for position in rows.positions("numbers")]
    )
    if not len(values):
      return
    low, high = np.percentile(values, self.percentiles)
    ledger.figures["at percentiles"] = {
      str(percent): float(np.percentile(values, percent)) for percent in (0, 25, 50, 75, 100)
    }
    if self.minimum is not None:
      low = max(low, self.minimum)
    if self.maximum is not None:
      high = min(high, self.maximum)
    for position in np.flatnonzero((values < low) | (values > high)):
      value = values[position]
      rule = f"{self.column} below {low:.4g}" if value < low else f"{self.column} above {high:.4g}"
      ledger.drop(int(position), rule, f"{value:.4g}", rows.text(int(position)))
