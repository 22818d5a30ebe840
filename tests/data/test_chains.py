"""Right answers as rows, by hand."""

import pytest

from research.data import chains

CHAT = [{"role": "user", "content": "3 + 4?"}]


def record(name, prompt, *samples):
  told = [
    {"completion": text, "correct": correct, "unfinished": cut} for text, correct, cut in samples
  ]
  return {"id": name, "prompt": prompt, "samples": told}


FIRST = record(
  "0:a",
  CHAT,
  ("It is 8.", 0, 0),
  ("It is 7.", 1, 0),
  ("It is 7.\n", 1, 0),
  ("7 is", 1, 1),
  ("7", 1, 0),
)
SECOND = record("1:b", "2 + 2 =", (" 5", 0, 0), (" 4", 1, 0))
THIRD = record("2:c", CHAT, ("6", 0, 0))


def asked(text):
  return {"messages": [*CHAT, {"role": "assistant", "content": text}]}


def test_right_and_finished_ones_that_differ():
  kept = chains.right({"results": [{"records": [FIRST, SECOND, THIRD]}]}, 4)
  assert kept.rows == [asked("It is 7."), asked("7"), {"prompt": "2 + 2 =", "completion": " 4"}]
  assert (kept.problems, kept.without) == (3, 1)


def test_at_most_so_many_of_a_problem():
  kept = chains.right({"results": {"x": {"records": [FIRST, SECOND, THIRD]}}}, 1)
  assert kept.rows == [asked("It is 7."), {"prompt": "2 + 2 =", "completion": " 4"}]


def test_several_evaluators_add_to_each_other():
  more = record("2:c", CHAT, ("7!", 1, 0))
  other = {"records": [{"id": "0"}]}  # of another kind, which kept no answers
  kept = chains.right({"results": [{"records": [THIRD]}, other, {"records": [more, more]}]}, 4)
  assert (kept.rows, kept.problems, kept.without) == ([asked("7!")], 1, 0)


@pytest.mark.parametrize(
  ("report", "most", "message"),
  [
    ([], 4, "not the file of an evaluation"),
    ({"name": "x"}, 4, "not the file of an evaluation"),
    ({"results": [{"records": [{"id": "0"}]}]}, 4, "no evaluator kept its answers"),
    ({"results": [{"records": [THIRD]}]}, 4, "none of 1 problems has a right answer"),
    ({"results": [{"records": [FIRST]}]}, 0, "keep at least 1"),
  ],
)
def test_mistakes(report, most, message):
  with pytest.raises(ValueError, match=message):
    chains.right(report, most)
