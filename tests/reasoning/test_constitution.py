"""Revised and compared answers: what is asked, in which order, and by which principle."""

import dataclasses

import pytest

from research import reasoning
from research.reasoning import constitution
from research.reasoning.constitution import PRINCIPLES, Constitution, Principle
from research.reasoning.session import Written

ONE = Principle("what is wrong?", "again.", "which is kinder?")
TWO = Principle("is it true?", "truly now.", "which is truer?")


class Scripted:
  """A session whose words are given: `says(stage, conversation)` and `prefers(text)`.

  cut: what it says is never finished.
  """

  def __init__(self, says, prefers=None, template="x", cut=()):
    self.says, self.prefers, self.cut = says, prefers, cut
    self.tokenizer = type("Tokenizer", (), {"chat_template": template})
    self.seen = []

  def write(self, requests, *, samples=1, stage=""):
    found = []
    for request in requests:
      self.seen.append((stage, request.problem, request.ask.prompt))
      texts = [self.says(stage, request, k) for k in range(samples)]
      found.append([Written(text, 1, (), text not in self.cut, False) for text in texts])
    return found

  def choose(self, requests, choices):
    assert choices == ("(A)", "(B)")
    shares = [self.prefers(request.ask.prompt) for request in requests]
    return [[share, 1 - share] for share in shares]


ASKS = reasoning.PROMPTS["plain"]()(["one", [{"role": "user", "content": "two"}]])


def test_an_answer_is_criticized_and_revised_by_the_principle_that_is_drawn():
  said = {"": "first ", "critique/0": "bad", "revision/0": "second", "critique/1": "worse"}
  session = Scripted(lambda stage, request, k: f"{said.get(stage, 'third')}")
  rules = Constitution((ONE, TWO), seed=4)
  found = constitution.revise(session, ASKS, rules, rounds=2, first=10)
  assert [one.text for one in found] == [" third", "third"] and found[0].first == "first"
  for i, one in enumerate(found):
    drawn = [rules.of(10 + i, turn) for turn in range(2)]
    assert [told["principle"] for told in one.rounds] == drawn
    assert [told["critique"] for told in one.rounds] == ["bad", "worse"]
  stage, number, asked = session.seen[5]  # the revision of the second problem
  principle = rules.principles[rules.of(11, 0)]
  assert (stage, number) == ("revision/0", 11)
  assert [message["content"] for message in asked] == [
    "two",
    "first",
    principle.critique,
    "bad",
    principle.revision,
  ]
  text = session.seen[4][2]
  assert text.startswith("onefirst") and text.rstrip().endswith(
    rules.principles[rules.of(10, 0)].revision
  )
  # The second round is about the answer that the first left.
  assert "second" in session.seen[6][2] and "bad" not in session.seen[6][2]


@pytest.mark.parametrize(
  ("prompt", "first", "revised", "told"),
  [
    ("A:", " Paris\n", "London ", [" Paris", " London"]),
    ("A: ", "Paris", "London", ["Paris", "London"]),
    ("A:\n", "\n Paris", "London", ["\n Paris", "London"]),
    ("A:", "", "\tLondon", ["", "\tLondon"]),
    ("A:", "?", " ", ["?", ""]),
    ([{"role": "user", "content": "A:"}], " Paris\n", " London", ["Paris", "London"]),
  ],
)
def test_a_text_and_its_answer_keep_their_joint(prompt, first, revised, told):
  said = {"": first, "critique/0": " no \n", "revision/0": revised}
  session = Scripted(lambda stage, request, k: said[stage])
  asks = reasoning.PROMPTS["plain"]()([prompt])
  (one,) = constitution.revise(session, asks, Constitution((ONE,)))
  assert [one.first, one.text] == told and one.rounds[0]["critique"] == "no"
  session = Scripted(lambda stage, request, k: (first, "no")[k] + " ", lambda asked: 0.9)
  (pair,) = constitution.compare(session, asks, Constitution((ONE,)))
  assert pair is None if not first else {pair.chosen, pair.rejected} == {told[0], "no"}


def test_an_answer_that_was_cut_off_is_told():
  session = Scripted(lambda stage, request, k: f"{stage}{k}", lambda asked: 0.9, cut=("0",))
  rules = Constitution((ONE,))
  assert [one.finished for one in constitution.revise(session, ASKS, rules)] == [True, True]
  assert constitution.compare(session, ASKS, rules) == [None, None]
  session.cut = ("revision/00",)
  assert [one.finished for one in constitution.revise(session, ASKS, rules)] == [False, False]
  assert None not in constitution.compare(session, ASKS, rules)


def test_principles_are_drawn_by_the_seed_and_the_problem():
  drawn = [Constitution((ONE, TWO), 0).of(i, 0) for i in range(200)]
  assert 70 < sum(drawn) < 130
  assert drawn != [Constitution((ONE, TWO), 1).of(i, 0) for i in range(200)]
  assert drawn != [Constitution((ONE, TWO), 0).of(i, 1) for i in range(200)]


def test_the_better_answer_is_found_whatever_its_place():
  def prefers(asked):
    """Always 0.3 for the first place, and the good answer wins 0.4 wherever it is."""
    text = asked[0]["content"]
    assert "which is kinder?" in text
    return 0.3 + 0.4 * (text.index("good") < text.index("mean"))

  texts = {0: ("good", "mean"), 1: ("mean", "good")}
  session = Scripted(lambda stage, request, k: texts[request.problem][k], prefers)
  for one in constitution.compare(session, ASKS, Constitution((ONE,))):
    assert (one.chosen, one.rejected) == ("good", "mean")
    assert one.preference == pytest.approx((0.7 + 1 - 0.3) / 2)


def test_another_model_may_judge_and_equal_answers_are_none():
  texts = {0: ("same", " same"), 1: ("", "x")}
  session = Scripted(lambda stage, request, k: texts[request.problem][k])
  judge = Scripted(None, lambda asked: 0.9)
  assert constitution.compare(session, ASKS, Constitution((ONE,)), judge=judge) == [None, None]
  other = Scripted(lambda stage, request, k: "ab"[k])
  judge = Scripted(None, lambda asked: 0.9 if asked.index("(A) a") > 0 else 0.2, template=None)
  with pytest.raises(ValueError, match="substring not found"):  # asked in the other order, too
    constitution.compare(other, ASKS, Constitution((ONE,)), judge=judge)


def test_a_model_revises_and_compares_alike_in_parts(session, ending_tokenizer):
  rules = Constitution(PRINCIPLES, seed=1)
  asks = [*ASKS, *reasoning.PROMPTS["plain"]()(["three, the longest of all"])]

  def make():
    return dataclasses.replace(session(max_new_tokens=5, batch_size=4), tokenizer=ending_tokenizer)

  whole = constitution.revise(make(), asks, rules, rounds=1)
  parts = constitution.revise(make(), asks[:1], rules, rounds=1)
  parts += constitution.revise(make(), asks[1:], rules, rounds=1, first=1)
  assert whole == parts and len({one.text for one in whole}) == 3
  compared = constitution.compare(make(), asks, rules)
  later = constitution.compare(make(), asks[1:], rules, first=1)
  told = [[one and (one.chosen, one.principle) for one in some] for some in (compared[1:], later)]
  pairs = [one for one in compared if one]
  assert told[0] == told[1] and len(pairs) >= 2  # of three, of which one may be cut off
  assert all(0.5 <= one.preference <= 1 and one.chosen != one.rejected for one in pairs)


def test_a_constitution_is_read():
  row = {"critique": "a?", "revision": "b", "comparison": "c?"}
  assert constitution.read([row]).principles == (Principle("a?", "b", "c?"),)
  with pytest.raises(ValueError, match="principle 0 has no 'critique'; did you mean 'critic'"):
    constitution.read([{"critic": "a?", "revision": "b", "comparison": "c?"}])
  with pytest.raises(ValueError, match="principle 0 has 'more'; it has critique"):
    constitution.read([{**row, "more": 1}])
  with pytest.raises(ValueError, match="at least one principle"):
    constitution.read([])
