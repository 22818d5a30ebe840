"""Texts that are no prose, by Gopher's rules (Rae et al. 2021, arXiv:2112.11446, section A.1)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

from research.curation.step import Ledger, Rows, Step

_BULLETS = ("•", "‣", "●", "▪", "◦", "*", "-", "–")
_ELLIPSES = ("...", "…")
_EDGES = re.compile(r"^\W+|\W+$")


@dataclasses.dataclass(frozen=True)
class Quality(Step):
  """Each field is a rule, its default that of the paper; the first one that fails is told.

  Words are what white space separates. A rule that is None is left out.

  min_words, max_words: of a text. min_mean_length, max_mean_length: characters of a word.
  max_symbols: hashes a word, and ellipses a word, each.
  max_bullet_lines: share of lines that begin with a bullet. max_ellipsis_lines: that end with an
    ellipsis.
  min_alphabetic: share of words that have a letter.
  stop_words, min_stop_words: of these different words a text has at least so many.
  """

  min_words: int | None = 50
  max_words: int | None = 100_000
  min_mean_length: float | None = 3.0
  max_mean_length: float | None = 10.0
  max_symbols: float | None = 0.1
  max_bullet_lines: float | None = 0.9
  max_ellipsis_lines: float | None = 0.3
  min_alphabetic: float | None = 0.8
  min_stop_words: int | None = 2
  stop_words: Sequence[str] = ("the", "be", "to", "of", "and", "that", "have", "with")

  def judge(self, rows: Rows, ledger: Ledger) -> None:
    for position in rows.positions("quality"):
      text = rows.text(position)
      if found := self.verdict(text):
        ledger.drop(position, *found, text)

  def verdict(self, text: str) -> tuple[str, str] | None:
    """The first field that a text fails, and the number that it fails with."""
    for rule, value in _measured(text, self.stop_words):
      limit = getattr(self, rule)
      if limit is not None and (value < limit if rule.startswith("min") else value > limit):
        return rule, f"{value:.4g}"
    return None


def _measured(text: str, stop_words: Sequence[str]) -> Iterator[tuple[str, float]]:
  words = text.split()
  count = max(1, len(words))
  yield "min_words", len(words)
  yield "max_words", len(words)
  mean = sum(map(len, words)) / count
  yield "min_mean_length", mean
  yield "max_mean_length", mean
  yield "max_symbols", max(text.count("#"), sum(map(text.count, _ELLIPSES))) / count
  lines = [line for line in map(str.strip, text.splitlines()) if line] or [""]
  yield "max_bullet_lines", sum(line.startswith(_BULLETS) for line in lines) / len(lines)
  yield "max_ellipsis_lines", sum(line.endswith(_ELLIPSES) for line in lines) / len(lines)
  yield "min_alphabetic", sum(any(map(str.isalpha, word)) for word in words) / count
  bare = {_EDGES.sub("", word).lower() for word in words}
  yield "min_stop_words", len(bare & {word.lower() for word in stop_words})
