"""Lengths, lists of words, columns of numbers, and languages."""

import sys

import numpy as np
import pytest

from research.curation.language import Language, identified
from research.curation.limits import Column, Length, WordList
from research.data import vocabulary


def test_lengths(dropped, tmp_path):
  texts = ["a", "bb bb", "c c c"]
  assert dropped(Length(minimum=2), texts) == [0]
  assert dropped(Length(maximum=4), texts) == [1, 2]
  assert dropped(Length(minimum=2, maximum=2, unit="words"), texts) == [0, 2]
  tokenizer = vocabulary.train(texts, size=259, kind="bpe", sentinels=1)  # a token a byte
  tokenizer.save(tmp_path)
  step = Length(maximum=4, unit="tokens", tokenizer=str(tmp_path))
  assert dropped(step, texts) == [1, 2]
  first = step.reads()
  assert Length().reads() is None
  vocabulary.train(["bb"] * 9, size=260, kind="bpe", sentinels=1).save(tmp_path)
  assert step.reads() != first
  (tmp_path / "tokenizer.json").unlink()
  for wrong in (
    {"unit": "bytes"},
    {"unit": "tokens"},
    {"tokenizer": str(tmp_path)},
    {"unit": "tokens", "tokenizer": str(tmp_path)},
  ):
    with pytest.raises(ValueError, match="length"):
      Length(**wrong)


def test_listed_words(dropped, judged, tmp_path):
  file = tmp_path / "words.txt"
  file.write_text("bad\n\nvery bad word\n")
  texts = ["badge", "A BAD thing", "very bad word, bad word", "fine"]
  assert dropped(WordList(str(file)), texts) == [1, 2]
  assert dropped(WordList(str(file), most=1), texts) == [2]  # a phrase, and a word
  assert dropped(WordList(str(file), most_share=0.35), texts) == [2]  # any number, then
  assert dropped(WordList(str(file), most=0, most_share=0.35), texts) == [1, 2]
  first = WordList(str(file)).reads()
  file.write_text("fine")
  assert WordList(str(file)).reads() != first
  file.write_text("\n")
  with pytest.raises(ValueError, match="has no words"):
    WordList(str(file))
  with pytest.raises(ValueError, match="there is no file"):
    WordList(str(tmp_path / "none"))


def test_columns(dropped, judged):
  rows = [{"text": "a", "score": float(score)} for score in (5, 1, 4, 2, 3)]
  assert dropped(Column("score", minimum=2, maximum=4), rows) == [0, 1]
  assert dropped(Column("score", percentiles=(0, 50)), rows) == [0, 2]
  assert dropped(Column("score", percentiles=(25, 100), maximum=4), rows) == [0, 1]
  ledger = judged(Column("score", minimum=2), rows)
  assert ledger.rules["score below 2"]["examples"][0]["detail"] == "1"
  assert ledger.figures["at percentiles"]["50"] == np.median([1, 2, 3, 4, 5])
  with pytest.raises(ValueError, match="row 100 is without a number.*did you mean 'score'"):
    dropped(Column("scores"), rows)
  with pytest.raises(ValueError, match="two from 0 to 100"):
    Column("score", percentiles=(50,))


ENGLISH = "The weather was fine, and everybody went down to the river to swim."
GERMAN = "Das Wetter war schön, und alle gingen an den Fluss hinunter, um zu schwimmen."


def test_languages(judged, monkeypatch):
  ledger = judged(Language(("en",)), [ENGLISH, GERMAN])
  assert ledger.dropped.tolist() == [False, True]
  assert ledger.figures["languages"] == {"en": 1, "de": 1}
  (example,) = ledger.rules["in another language"]["examples"]
  assert example["detail"] == f"de {identified(GERMAN)[1]:.2f}"
  assert identified(ENGLISH)[1] > 0.9
  # A number tells of no language: all are as likely as before.
  assert judged(Language((identified("7")[0],)), ["7"]).rules.keys() == {"of no certain language"}
  with pytest.raises(ValueError, match="there is no language 'english'"):
    Language(("english",))
  with pytest.raises(ValueError, match="a list of languages"):
    Language("en")
  monkeypatch.setitem(sys.modules, "py3langid", None)
  with pytest.raises(ValueError, match=r"needs py3langid .*pip install 'research\[curation\]'"):
    Language(("en",))
