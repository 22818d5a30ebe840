"""Gopher's rules: rows made to break one each, and shares counted by hand."""

import pytest

from research.curation.quality import Quality
from research.curation.repetition import Repetition, repeated_share, top_share

PROSE = (
  "The ship left the harbour at dawn and nobody on the pier could say where it would be by night.\n"
  "Some of the crew have said that they wanted to stay with their families for another week.\n"
  "- A list of things that were left behind was found under a stone near the old lighthouse.\n"
)

BROKEN = {
  "min_words": " ".join(PROSE.split()[:49]),
  "max_words": PROSE * 2000,
  "min_mean_length": PROSE + "a b " * 60,
  "max_mean_length": PROSE + "incomprehensibilities " * 40,
  "max_symbols": PROSE + "# " * 7,
  "max_bullet_lines": "\n".join(f"- {PROSE.split(chr(10))[n % 2]}" for n in range(4)),
  "max_ellipsis_lines": PROSE.replace("week.", "week..."),
  "min_alphabetic": PROSE + "1234 " * 20,
  "min_stop_words": "Ships leave harbours at dawn, nobody knows why. " * 10,
}


def test_prose_is_kept(dropped):
  assert dropped(Quality(), [PROSE]) == [] == dropped(Repetition(), [PROSE])


@pytest.mark.parametrize("rule", BROKEN)
def test_a_row_that_breaks_one_rule(rule, judged):
  ledger = judged(Quality(), [BROKEN[rule]])
  assert list(ledger.rules) == [rule]
  # No other rule takes it.
  assert not judged(Quality(**{rule: None}), [BROKEN[rule]]).rules


def test_numbers_are_told(judged):
  ledger = judged(Quality(), [BROKEN["max_symbols"]])
  words = len(BROKEN["max_symbols"].split())
  assert ledger.rules["max_symbols"]["examples"][0]["detail"] == f"{7 / words:.4g}"


def test_stop_words_are_others_of_another_language(dropped):
  german = "Das Schiff verließ den Hafen und niemand wusste, wohin die Reise gehen sollte. " * 5
  assert dropped(Quality(), [german]) == [0]
  assert dropped(Quality(stop_words=("der", "die", "das", "und")), [german]) == []


def test_shares_of_ngrams():
  words = ["aa", "b", "aa", "b", "c", "aa", "b"]  # 10 characters; "aa b" three times has 9
  assert top_share(words, 2) == pytest.approx(9 / 10)
  assert top_share(words, 3) == 0  # each but once
  assert repeated_share(words, 2) == pytest.approx(6 / 10)  # all but the first
  # n-grams that overlap: characters count once.
  assert top_share(["a"] * 5, 2) == 1 and repeated_share(["a"] * 5, 2) == pytest.approx(4 / 5)
  assert top_share(["a"], 2) == 0 == repeated_share([], 5)


WORDS = [f"word{n}" for n in range(100)]
REPEATED = {
  # Two of five lines, which are short; as paragraphs, the same.
  "lines": "\n".join([" ".join(WORDS[:60]), " ".join(WORDS[60:99]), "x y", "x y", "x y"]),
  "line_characters": "\n".join([*(f"a{n}" for n in range(8)), *["a line of some length"] * 2]),
  "paragraphs": "\n\n".join([" ".join(WORDS[:60]), " ".join(WORDS[60:99]), *["x\ny"] * 3]),
  "top 2-gram": " ".join(f"so it {word}" for word in ["a1", "b2", "c3", "d4", "e5", "f6"]),
  "repeated 5-grams": " ".join([*WORDS[:60], *WORDS[3:9], *WORDS[20:26]]),
}


@pytest.mark.parametrize("rule", REPEATED)
def test_a_row_that_repeats_itself(rule, judged):
  # Lines of paragraphs are lines, too.
  step = Repetition(lines=None) if rule == "paragraphs" else Repetition()
  assert list(judged(step, [REPEATED[rule]]).rules) == [rule]


def test_paragraph_characters(judged):
  text = "\n\n".join([*(f"a{n}" for n in range(8)), *["a paragraph of some length"] * 2])
  step = Repetition(line_characters=None)
  assert list(judged(step, [text]).rules) == ["paragraph_characters"]
  step = Repetition(line_characters=None, paragraph_characters=None, top=None, repeated=None)
  assert not judged(step, [text]).rules
  with pytest.raises(ValueError, match="top is 3 shares"):
    Repetition(top=(0.2,))
