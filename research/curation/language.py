"""Texts in other languages than those that are wanted."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from research.curation.step import Ledger, Rows, Step


@dataclasses.dataclass(frozen=True)
class Language(Step):
  """Keeps texts that are in one of `keep` with at least a probability.

  Languages are told by py3langid, naive Bayes over n-grams of bytes (Lui and Baldwin 2012), whose
  probability is that of the language among all that it knows. Short texts are told badly.

  keep: codes of ISO 639-1, such as ("en", "de").
  probability: the least.
  """

  keep: Sequence[str]
  probability: float = 0.5

  def __post_init__(self) -> None:
    try:
      import py3langid
    except ImportError as error:
      raise ValueError(
        f"language needs py3langid ({error}); pip install 'research[curation]'"
      ) from error
    known = sorted(language for language, _ in py3langid.rank("a text"))
    if isinstance(self.keep, str) or not self.keep:
      raise ValueError(f"language.keep is a list of languages, not {self.keep!r}")
    if unknown := [language for language in self.keep if language not in known]:
      raise ValueError(f"there is no language {unknown[0]!r}; known: {', '.join(known)}")
    if not 0 <= self.probability <= 1:
      raise ValueError(f"language.probability is from 0 to 1, not {self.probability}")

  def judge(self, rows: Rows, ledger: Ledger) -> None:
    counts: collections.Counter[str] = collections.Counter()
    for position in rows.positions("languages"):
      text = rows.text(position)
      language, probability = identified(text)
      counts[language] += 1
      if language not in self.keep:
        ledger.drop(position, "in another language", f"{language} {probability:.2f}", text)
      elif probability < self.probability:
        ledger.drop(position, "of no certain language", f"{language} {probability:.2f}", text)
    ledger.figures["languages"] = dict(counts.most_common())


def identified(text: str) -> tuple[str, float]:
  """The likeliest language of a text and its probability."""
  import py3langid

  ranked = py3langid.rank(text)  # logarithms, of likelihoods that are not normalized
  logs = np.array([log for _, log in ranked], np.float64)
  return ranked[0][0], float(1 / np.exp(logs - logs[0]).sum())
