"""Duplicates against sets of shingles, compared pair by pair."""

import sys

import numpy as np
import pytest

from research.curation import duplicates
from research.curation.duplicates import ExactDuplicates, NearDuplicates


def test_normalized_texts_and_shingles():
  assert duplicates.normalized(" Ｔhe Cat's\n\tHAT, hat!") == "the cat's hat, hat!"
  assert duplicates.shingles("a b c  D", 3) == {"a b c", "b c d"}
  assert duplicates.shingles("a b", 3) == {"a b"}


def test_exact_duplicates_are_of_texts_in_any_column(judged):
  rows = ["A cat\n\na hat", "2 + 2", "a CAT  a hat", {"prompt": "a cat", "completion": "a hat"}]
  ledger = judged(ExactDuplicates(), [*rows, "2 * 2"])
  assert ledger.dropped.tolist() == [False, False, True, True, False]
  (rule,) = ledger.rules.values()
  assert rule["rows"] == 2
  expected = {"row": 102, "detail": "the text of row 100", "text": "a CAT  a hat"}
  assert rule["examples"][0] == expected


@pytest.fixture(scope="module")
def texts():
  """Forty texts of sixty words, and of some of them copies of which more and more words differ."""
  rng = np.random.default_rng(0)
  texts = [[f"w{n}" for n in rng.integers(0, 500, 60)] for _ in range(40)]
  for number in range(30):
    copy = list(texts[number])
    for place in rng.integers(0, 60, number // 5):
      copy[place] = "changed"
    texts.append(copy)
  return [" ".join(words) for words in texts]


def similarity(first, second, n):
  a, b = ({tuple(text.split()[i : i + n]) for i in range(61 - n)} for text in (first, second))
  return len(a & b) / len(a | b)


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_near_duplicates_are_those_of_true_similarity(dropped, texts, threshold):
  found = dropped(NearDuplicates(threshold=threshold, n=3), texts)
  true = [similarity(texts[number], texts[40 + number], 3) for number in range(30)]
  near = [40 + number for number in range(30) if true[number] >= threshold]
  nearer = [40 + number for number in range(30) if true[number] >= threshold + 0.1]
  assert {*nearer} <= {*found} <= {*near}
  assert len(nearer) >= 10 and len(near) - len(found) <= 2
  # Nothing is taken away twice, or for another that goes itself.
  assert dropped(NearDuplicates(threshold=threshold, n=3), texts[:40]) == []


@pytest.mark.parametrize("permutations", [2, 16, 128])
def test_near_duplicates_may_have_to_be_the_same(dropped, texts, permutations):
  """Sets that are equal are always found, by few permutations too, and others never."""
  rows = [*texts[:40], texts[3].upper(), " ".join(texts[4].split()[:-1])]
  assert dropped(NearDuplicates(threshold=1.0, n=3, permutations=permutations), rows) == [40]


def test_the_best_stays(dropped, texts):
  rows = [{"text": text, "score": number % 40} for number, text in enumerate(texts)]
  rows[46]["score"] = 7  # the copy of row 6
  step = NearDuplicates(threshold=0.5, n=3, best="score")
  found = dropped(step, rows)
  # Of equals the first stays.
  assert 6 in found and 46 not in found and 45 in found and 5 not in found
  with pytest.raises(ValueError, match="memory row 100 is without a number: .*'score'"):
    dropped(NearDuplicates(best="scores"), rows)


def test_what_cannot_be(monkeypatch):
  with pytest.raises(ValueError, match="a threshold above 0 and at most 1"):
    NearDuplicates(threshold=1.5)
  monkeypatch.setitem(sys.modules, "datasketch", None)
  with pytest.raises(ValueError, match=r"needs datasketch .*pip install 'research\[curation\]'"):
    NearDuplicates()
