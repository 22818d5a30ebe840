"""Scorers on answers as models write them."""

import json
from decimal import Decimal

import pytest

from research.data import sources
from research.evals import scorers


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("The answer is 42.", [42]),
    ("...42", [42]),
    ("1,234,567 and 1,23 and 12,345.50", [1234567, 1, 23, "12345.50"]),
    ("1,2345", [1, 2345]),
    ("-7, - 7 and \u22127", [-7, 7, -7]),
    ("5-3 = 2", [5, 3, 2]),
    ("5 -3", [5, -3]),
    ("x-3, (4)-5", [3, 4, 5]),
    ("=-4", [-4]),
    ("+4", [4]),
    ("-$1,000.25 or $-3", ["-1000.25", -3]),
    (".5 and 0.50", ["0.5", "0.50"]),
    ("42% of 3km\u00b2", [42, 3]),
    ("\\boxed{-12}", [-12]),
    ("**8**", [8]),
    ("12 m^2, 10^{-3}", [12, 10]),
    ("H2O in version 1.2.3", ["1.2"]),
    ("3/4", [3, 4]),
    ("no number", []),
    ("", []),
  ],
)
def test_numbers(text, expected):
  assert scorers.numbers(text) == [Decimal(value) for value in expected]


@pytest.mark.parametrize(
  ("text", "answer", "value", "correct"),
  [
    ("3 + 4 = 7", "7", "7", True),
    ("7.00", "7", "7.00", True),
    ("3.14", "3.1416", "3.14", False),
    ("1,000", "1000", "1000", True),
    ("It is 7, or maybe 8", "7", "8", False),
    ("-7", "7", "-7", False),
    ("seven", "7", None, False),
  ],
)
def test_last_number(text, answer, value, correct):
  assert scorers.last_number(text, {"answer": answer}) == scorers.Verdict(value, correct)


def test_last_number_wants_one_number_as_reference():
  for judged in (scorers.last_number, lambda _, problem: scorers.last_number.check(problem)):
    with pytest.raises(ValueError, match="'3/4' is not one number"):
      judged("3/4", {"answer": "3/4"})


@pytest.mark.parametrize(
  ("scorer", "problem", "told"),
  [
    ("last_number", {"answer": None, "answr": "7"}, "there is no 'answer'; did you mean 'answr'"),
    ("exact", {"prompt": "q"}, "there is no 'answer'$"),
    ("reasoning_gym", {"answer": "7", "metadata": None}, "no 'task', 'question', 'metadata'$"),
    ("reasoning_gym", {"task": "sums", "question": "?", "metadata": {}}, "'sums' not registered"),
  ],
)
def test_what_a_problem_is_judged_by_is_there(scorer, problem, told):
  with pytest.raises(ValueError, match=told):
    scorers.SCORERS[scorer].check(problem)


@pytest.mark.parametrize(
  ("scorer", "first", "second", "same"),
  [
    ("last_number", "7", "it is 7.0", True),
    ("last_number", "1,000", "1000.00", True),
    ("last_number", "7", "-7", False),
    ("exact", " Paris\n", "Paris", True),
    ("reasoning_gym", "so <answer> 12</answer>", "<answer>1</answer> <answer>12</answer>!", True),
    ("reasoning_gym", "12", "it is 12", False),
  ],
)
def test_equal_answers_are_one_value(scorer, first, second, same):
  read = scorers.SCORERS[scorer].read
  assert (read(first) == read(second)) is same
  assert len({read(first), read(second)}) == (1 if same else 2)
  assert read(" ") is None


def test_exact():
  assert scorers.exact(" Paris\n", {"answer": "Paris"}) == scorers.Verdict("Paris", True)
  assert scorers.exact("paris", {"answer": "Paris"}) == scorers.Verdict("paris", False)
  assert scorers.exact(" ", {"answer": ""}) == scorers.Verdict(None, False)


def test_reasoning_gym_asks_the_task():
  tasks = [{"name": "chain_sum"}, {"name": "simple_equations"}, {"name": "spell_backward"}]
  rows = sources.build({"name": "reasoning_gym", "tasks": tasks, "size": 12})
  for i in range(len(rows)):
    row = rows[i]
    assert scorers.reasoning_gym(row["answer"], row).correct
    tagged = f"<answer>1</answer> No: <answer>\n{row['answer']} </answer>."
    assert scorers.reasoning_gym(tagged, row) == scorers.Verdict(row["answer"], True)
    # A sentence around the answer earns some tasks' partial credit, which is not a right answer.
    assert not scorers.reasoning_gym(f"it is {row['answer']} or 5", row).correct
    assert scorers.reasoning_gym(" ", row) == scorers.Verdict(None, False)


@pytest.mark.parametrize(
  ("task", "text"),
  [
    ("prime_factorization", "The answer is 2 \u00d7 3."),
    ("boxnet", "0"),
    ("boxnet", "[[1, 2]]"),
    ("game_of_life", "{}"),
    ("coin_flip", "1e999"),
  ],
)
def test_what_a_verifier_cannot_read_is_wrong(task, text):
  """Each of these is one more kind of error in reasoning-gym."""
  row = sources.build({"name": "reasoning_gym", "tasks": [{"name": task}], "size": 1})[0]
  assert scorers.reasoning_gym(text, row) == scorers.Verdict(text, False)


def test_a_task_without_a_reference_is_scored():
  row = sources.build({"name": "reasoning_gym", "tasks": [{"name": "graph_color"}], "size": 1})[0]
  assert row["answer"] is None and "completion" not in row
  scorers.reasoning_gym.check(row)
  colors = row["metadata"]["possible_answer"]
  assert scorers.reasoning_gym(json.dumps(colors), row).correct
  assert not scorers.reasoning_gym(json.dumps(dict.fromkeys(colors, 1)), row).correct
  assert not scorers.reasoning_gym("None", row).correct
