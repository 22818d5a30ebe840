"""Contamination: an n-gram that was planted is found, and one word less is not."""

import json

import pytest

from research.curation.contamination import Contamination, words

WORDS = [f"word{n}" for n in range(400)]


@pytest.fixture
def evaluation(tmp_path, monkeypatch):
  """The config of a source of these items."""
  monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path))

  def write(*items):
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": item, "answer": "none"}) for item in items))
    return ({"name": "jsonl", "path": str(path)},)

  return write


def test_words():
  assert words("Ｔhe Cat's\n HAT, hat!") == ["the", "cat", "s", "hat", "hat"]


def test_planted_runs_of_words(evaluation, judged):
  item, whole, short = " ".join(WORDS[:40]), " ".join(WORDS[100:110]), " ".join(WORDS[200:207])
  step = Contamination(evaluation(item, whole, short, "unrelated " * 20))
  planted = " ".join(WORDS[20:33]).upper().replace(" ", ", ")
  rows = [
    f"before {planted} behind",
    f"before {' '.join(WORDS[20:32])} behind",  # twelve words
    f"x {whole} y",  # all of an item of ten
    f"x {short} y",  # seven, of which nothing can be said
    {"prompt": "before", "completion": " ".join(WORDS[3:16])},
  ]
  ledger = judged(step, rows)
  assert ledger.dropped.tolist() == [True, False, True, False, True]
  ((name, rule),) = ledger.rules.items()
  assert name == "shares words with evaluation[0]" and rule["rows"] == 3
  assert rule["examples"][0]["detail"] == f"row 0 of it has {' '.join(WORDS[20:33])!r}, too"
  (told,) = ledger.figures["evaluation"]
  assert (told["items"], told["contaminated"], told["too short to judge"]) == (4, 2, 1)
  assert told["share"] == 0.5
  only_told = judged(Contamination(step.evaluation, action="tell"), rows)
  assert not only_told.dropped.any() and only_told.rules == ledger.rules


def test_common_phrases_are_no_evidence(evaluation, judged):
  question = " ".join(WORDS[:13])
  step = Contamination(evaluation(f"{question} {' '.join(WORDS[50:70])}"), common=2)
  rows = [f"{question} {n}" for n in range(3)] + [" ".join(WORDS[50:63])]
  ledger = judged(step, rows)
  assert ledger.dropped.tolist() == [False, False, False, True]
  assert ledger.figures["common n-grams left out"] == 1
  assert judged(step, rows[1:]).dropped.all()  # in two rows it is none
  assert judged(Contamination(step.evaluation), rows).dropped.all()


def test_what_is_read_and_what_cannot_be(evaluation):
  first = Contamination(evaluation("a")).reads()
  assert Contamination(evaluation("b")).reads() != first
  for wrong in ({"n": 5}, {"common": -1}, {"action": "hide"}):
    with pytest.raises(ValueError, match="contamination"):
      Contamination(evaluation("a"), **wrong)
  with pytest.raises(ValueError, match="names no source"):
    Contamination(())
