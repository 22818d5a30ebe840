"""Rows that were there before: word for word, or nearly so.

Of rows that are alike the first stays, or the best by a column. A row goes only if it is like one
that stays: there are no chains, in which the last one has little in common with the first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import unicodedata

import numpy as np

from research.curation.step import Ledger, Rows, Step

# What a false candidate counts in the choice of bands, which costs a comparison, and what a missed
# one does, which is a duplicate that stays. By datasketch's own, equal, weights 60 % of pairs at a
# threshold of 0.8 are missed with 128 permutations, by these 13 %, and at 0.85 2.5 %.
_WEIGHTS = (0.1, 0.9)


def normalized(text: str) -> str:
  """A text in NFKC and lower case, white space as single spaces; signs stay, which may be all that
  differs between two formulas."""
  return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def shingles(text: str, n: int) -> set[str]:
  """All runs of `n` words of a text, normalized; all its words where they are fewer."""
  words = normalized(text).split()
  return {" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


@dataclasses.dataclass(frozen=True)
class ExactDuplicates(Step):
  """Texts that are the same, `normalized`. Memory holds a hash of 16 bytes of each row."""

  def judge(self, rows: Rows, ledger: Ledger) -> None:
    first: dict[bytes, int] = {}
    for position in rows.positions("exact duplicates"):
      text = rows.text(position)
      digest = hashlib.blake2b(normalized(text).encode(), digest_size=16).digest()
      known = first.setdefault(digest, position)
      if known != position:
        detail = f"the text of row {rows.origin(known)}"
        ledger.drop(position, "same text as a row before", detail, text)


@dataclasses.dataclass(frozen=True)
class NearDuplicates(Step):
  """Texts whose sets of shingles have a Jaccard similarity of at least `threshold`.

  Candidates are found by MinHash and banding (Broder 1997; Lee et al. 2021, arXiv:2107.06499,
  section 4.2), by datasketch, and compared by their true shingles. Of pairs just above the
  threshold a few have no band in common and are missed, fewer with more permutations.

  n: words of a shingle. permutations: of a signature. seed: of these.
  best: a column of numbers, of which the largest of similar rows stays; "": the first row does.
  """

  threshold: float = 0.8
  n: int = 5
  permutations: int = 128
  seed: int = 0
  best: str = ""

  def __post_init__(self) -> None:
    if not 0 < self.threshold <= 1 or self.n < 1 or self.permutations < 2:
      raise ValueError(
        "near_duplicates has a threshold above 0 and at most 1, n of at least 1 and 2 permutations"
        f" or more, not {self.threshold}, {self.n} and {self.permutations}"
      )
    try:
      import datasketch  # noqa: F401
    except ImportError as error:
      raise ValueError(
        f"near_duplicates needs datasketch ({error}); pip install 'research[curation]'"
      ) from error

  def judge(self, rows: Rows, ledger: Ledger) -> None:
    import datasketch

    # There are two bands at least, which by so many permutations are for no higher threshold:
    # (1 / bands) ** (1 / permutations of a band). Candidates are compared anyway.
    highest = 0.5 ** (2 / self.permutations)
    index = datasketch.MinHashLSH(
      threshold=min(self.threshold, highest), num_perm=self.permutations, weights=_WEIGHTS
    )
    empty = datasketch.MinHash(num_perm=self.permutations, seed=self.seed)
    order = self._order(rows)
    for at in rows.positions("near duplicates"):
      position = int(order[at])
      text = rows.text(position)
      own = shingles(text, self.n)
      signature = empty.copy()
      signature.update_batch([shingle.encode() for shingle in own])
      for other in sorted(index.query(signature)):
        theirs = shingles(rows.text(other), self.n)
        similarity = len(own & theirs) / len(own | theirs)
        if similarity >= self.threshold:
          detail = f"{similarity:.2f} like row {rows.origin(other)}"
          ledger.drop(position, "nearly as another row", detail, text)
          break
      else:
        index.insert(position, signature, check_duplication=False)

  def _order(self, rows: Rows) -> np.ndarray:
    """Positions, those to be kept first."""
    if not self.best:
      return np.arange(len(rows))
    scores = [rows.number(position, self.best) for position in rows.positions(self.best)]
    return np.argsort(-np.asarray(scores), kind="stable")
