"""Texts that repeat themselves, by Gopher's rules (Rae et al. 2021, arXiv:2112.11446, table A1)."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence

from research.curation.step import Ledger, Rows, Step

_PARAGRAPHS = re.compile(r"\n\s*\n")
_TOP = (2, 3, 4)  # words of the n-grams whose most frequent one is looked at
_REPEATED = (5, 6, 7, 8, 9, 10)  # and of those of which all that come again are


@dataclasses.dataclass(frozen=True)
class Repetition(Step):
  """Each field is the most that a share may be, its default the paper's; None leaves it out.

  What is repeated is what was there before: of two equal lines, one. Shares of n-grams are of the
  characters of words, each counted once. The most frequent n-gram counts with all its places, if it
  has more than one.

  lines, paragraphs: share that are repeated. line_characters, paragraph_characters: of the text in
    these.
  top: in the most frequent n-gram of 2, 3 and 4 words.
  repeated: in repeated n-grams of 5, 6, ... 10 words.
  """

  lines: float | None = 0.30
  paragraphs: float | None = 0.30
  line_characters: float | None = 0.20
  paragraph_characters: float | None = 0.20
  top: Sequence[float] | None = (0.20, 0.18, 0.16)
  repeated: Sequence[float] | None = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)

  def __post_init__(self) -> None:
    for name, sizes in (("top", _TOP), ("repeated", _REPEATED)):
      limits = getattr(self, name)
      if limits is not None and len(limits) != len(sizes):
        raise ValueError(f"repetition.{name} is {len(sizes)} shares, of n-grams of {sizes} words")

  def judge(self, rows: Rows, ledger: Ledger) -> None:
    for position in rows.positions("repetition"):
      text = rows.text(position)
      if found := self.verdict(text):
        ledger.drop(position, *found, text)

  def verdict(self, text: str) -> tuple[str, str] | None:
    """The first rule that a text fails, and the share that it fails with."""
    for rule, limit, share in self._measured(text):
      if limit is not None and share > limit:
        return rule, f"{share:.3f}"
    return None

  def _measured(self, text: str) -> Iterator[tuple[str, float | None, float]]:
    for name, pieces in (("line", text.splitlines()), ("paragraph", _PARAGRAPHS.split(text))):
      count, characters = _repeated_pieces(pieces)
      yield f"{name}s", getattr(self, f"{name}s"), count
      yield f"{name}_characters", getattr(self, f"{name}_characters"), characters
    words = text.split()
    for n, limit in zip(_TOP, self.top or (), strict=self.top is not None):
      yield f"top {n}-gram", limit, top_share(words, n)
    for n, limit in zip(_REPEATED, self.repeated or (), strict=self.repeated is not None):
      yield f"repeated {n}-grams", limit, repeated_share(words, n)


def _repeated_pieces(pieces: Sequence[str]) -> tuple[float, float]:
  """The share of pieces that were there before, and of their characters; blank ones are none."""
  pieces = [piece for piece in map(str.strip, pieces) if piece]
  seen: set[str] = set()
  again = []
  for piece in pieces:
    if piece in seen:
      again.append(piece)
    seen.add(piece)
  characters = sum(map(len, pieces))
  return len(again) / max(1, len(pieces)), sum(map(len, again)) / max(1, characters)


def top_share(words: Sequence[str], n: int) -> float:
  """The share of characters that lie in the n-gram with the most places, if it has several."""
  grams = _ngrams(words, n)
  if not grams:
    return 0.0
  counts = collections.Counter(grams)
  top = max(counts, key=lambda gram: (counts[gram], sum(map(len, gram))))
  if counts[top] < 2:
    return 0.0
  return _covered(words, [start for start, gram in enumerate(grams) if gram == top], n)


def repeated_share(words: Sequence[str], n: int) -> float:
  """The share of characters that lie in n-grams which were there before."""
  seen: set[tuple[str, ...]] = set()
  starts = []
  for start, gram in enumerate(_ngrams(words, n)):
    if gram in seen:
      starts.append(start)
    seen.add(gram)
  return _covered(words, starts, n)


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
  return list(zip(*(words[i:] for i in range(n)), strict=False))


def _covered(words: Sequence[str], starts: Sequence[int], n: int) -> float:
  """The share of characters in the words of n-grams that begin at `starts`, ascending."""
  total, end = 0, 0
  for start in starts:
    total += sum(map(len, words[max(start, end) : start + n]))
    end = start + n
  return total / max(1, sum(map(len, words)))
