"""Rows that hold a part of what a model is to be measured by."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from research.curation.step import Ledger, Rows, Step
from research.data import sources, texts

_NO_WORD = re.compile(r"[^\w\s]+")
Item = tuple[int, int]  # number of an evaluation source, index of its row


@dataclasses.dataclass(frozen=True)
class Contamination(Step):
  """Rows that share a run of `n` words with a row of an evaluation source (Brown et al. 2020,
  arXiv:2005.14165, appendix C).

  Words are in lower case and without punctuation. A row for evaluation that has fewer words than
  `n` is compared as a whole from `shortest` words on; of shorter ones nothing can be said, and they
  are counted. So a large `n` looks for whole rows alone, as is right for problems that are told in
  the same words. Memory holds the n-grams of what is evaluated, and numbers a row of what is
  curated.

  evaluation: configs of sources (`research.data.sources`).
  common: n-grams in more rows than so many are phrases of the trade, such as a question that all
    prompts begin with, and no evidence; 0: all n-grams are evidence. Duplicates are to be gone
    first.
  action: "drop" takes such rows away, "tell" counts them.
  """

  evaluation: Sequence[Mapping[str, Any]]
  n: int = 13
  shortest: int = 8
  common: int = 0
  action: str = "drop"

  def __post_init__(self) -> None:
    if not self.evaluation:
      raise ValueError("contamination.evaluation names no source")
    if not 1 <= self.shortest <= self.n or self.common < 0:
      raise ValueError(
        "contamination has shortest from 1 to n and common of at least 0, not"
        f" {self.shortest}, {self.n} and {self.common}"
      )
    if self.action not in ("drop", "tell"):
      raise ValueError(f"contamination.action is 'drop' or 'tell', not {self.action!r}")

  def reads(self) -> Any:
    return [sources.build(config).fingerprint for config in self.evaluation]

  def judge(self, rows: Rows, ledger: Ledger) -> None:
    built = [sources.build(config) for config in self.evaluation]
    items: dict[str, list[Item]] = defaultdict(list)
    short = [0] * len(built)
    for number, source in enumerate(built):
      everything = Rows(source, np.arange(len(source)))
      for index in everything.positions(f"reading {source.name}"):
        found = words(texts.joined(source[index]))
        if len(found) < self.shortest:
          short[number] += 1
        for gram in set(_ngrams(found, min(self.n, max(len(found), self.shortest)))):
          items[gram].append((number, index))
    sizes = sorted({gram.count(" ") + 1 for gram in items})
    where: dict[str, list[int]] = defaultdict(list)  # the rows that have an n-gram
    for position in rows.positions("contamination"):
      found = words(rows.text(position))
      for gram in {g for size in sizes for g in _ngrams(found, size) if g in items}:
        if not self.common or len(where[gram]) <= self.common:
          where[gram].append(position)
    evidence = {gram: at for gram, at in where.items() if not self.common or len(at) <= self.common}
    self._tell(rows, ledger, evidence, items, built)
    touched = {item for gram in evidence for item in items[gram]}
    ledger.figures["evaluation"] = [
      {
        "source": source.name,
        "items": len(source),
        "contaminated": (count := sum(at == number for at, _ in touched)),
        "share": count / max(1, len(source)),
        "too short to judge": short[number],
      }
      for number, source in enumerate(built)
    ]
    ledger.figures["common n-grams left out"] = len(where) - len(evidence)

  def _tell(
    self,
    rows: Rows,
    ledger: Ledger,
    evidence: Mapping[str, Sequence[int]],
    items: Mapping[str, Sequence[Item]],
    built: Sequence[Any],
  ) -> None:
    """Each row under the source that it shares an n-gram with, in the order of rows."""
    first: dict[int, str] = {}
    for gram, positions in evidence.items():
      for position in positions:
        first[position] = min(first.get(position, gram), gram)
    act = ledger.drop if self.action == "drop" else ledger.told
    for position in sorted(first):
      gram = first[position]
      number, index = items[gram][0]
      origin = Rows(built[number], np.array([index])).origin(0)
      detail = f"row {origin} of it has {gram!r}, too"
      act(position, f"shares words with evaluation[{number}]", detail, rows.text(position))


def words(text: str) -> list[str]:
  """The words of a text: NFKC, lower case, without punctuation."""
  return _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).lower()).split()


def _ngrams(found: Sequence[str], n: int) -> Iterator[str]:
  return (" ".join(found[i : i + n]) for i in range(len(found) - n + 1))
