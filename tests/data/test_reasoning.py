"""Problems of reasoning-gym as a source: the same each time, held-out ones apart."""

import pytest

from research.data import formats, sources
from research.data.examples import BadRow

GYM = {
  "name": "reasoning_gym",
  "tasks": [
    {"name": "chain_sum", "weight": 3, "config": {"max_terms": 3, "max_digits": 2}},
    {"name": "products"},
  ],
  "size": 300,
  "seed": 5,
}


def test_reasoning_gym_is_a_function_of_its_config():
  first, again, other = (sources.build({**GYM, "seed": seed}) for seed in (5, 5, 6))
  rows = [first[i] for i in range(len(first))]
  assert rows == [again[i] for i in range(300)] and first.fingerprint == again.fingerprint
  assert rows != [other[i] for i in range(300)] and first.fingerprint != other.fingerprint
  assert len({row["question"] for row in rows}) == 300
  share = sum(row["task"] == "chain_sum" for row in rows) / 300
  assert abs(share - 0.75) < 0.1  # four standard deviations of the draw


def test_a_task_that_draws_its_kinds_beforehand():
  tasks = [{"name": "gsm_symbolic"}]
  few, more = (
    sources.build({"name": "reasoning_gym", "tasks": tasks, "size": size}) for size in (3, 5)
  )
  assert [few[i] for i in range(3)] == [more[i] for i in range(3)]


def test_reasoning_gym_rows_verify():
  from reasoning_gym import get_score_answer_fn

  for chat in (True, False):
    source = sources.build({**GYM, "chat": chat, "completion": "= {answer}"})
    for row in (source[i] for i in range(50)):
      asked, told = row["prompt"], row["completion"]
      if chat:
        assert (asked[0]["role"], told[0]["role"]) == ("user", "assistant")
        asked, told = asked[0]["content"], told[0]["content"]
      assert (asked, told) == (row["question"], f"= {row['answer']}")
      assert get_score_answer_fn(row["task"])(row["answer"], row) == 1.0
      assert get_score_answer_fn(row["task"])(row["answer"] + "1", row) < 1.0


def test_what_has_no_reference_is_not_imitated(byte_tokenizer):
  row = sources.build({**GYM, "tasks": [{"name": "propositional_logic"}], "size": 1})[0]
  assert row["answer"] is None and row["prompt"][0]["content"] == row["question"]
  with pytest.raises(BadRow, match="fit no format of"):
    formats.tokenize(row, byte_tokenizer, completion_only=True)


def test_reasoning_gym_splits_never_meet():
  # A task with so few problems that any two seeds alone would meet.
  few = [{"name": "chain_sum", "config": {"max_terms": 2, "max_digits": 1}}]
  train = [
    sources.build({"name": "reasoning_gym", "tasks": few, "size": 150, "seed": seed})
    for seed in (0, 1)
  ]
  test = sources.build({"name": "reasoning_gym", "tasks": few, "size": 10, "split": "test"})
  questions = [{source[i]["question"] for i in range(len(source))} for source in (*train, test)]
  assert questions[0] & questions[1]
  assert not questions[2] & (questions[0] | questions[1])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"tasks": [{"name": "chain_sums"}]}, "no reasoning_gym task 'chain_sums'; did you mean 'chai"),
    (
      {"tasks": [{"name": "chain_sum", "config": {"max_term": 3}}]},
      "task 'chain_sum' takes no 'max_term'; did you mean 'max_terms'",
    ),
    (
      {"tasks": [{"name": "chain_sum", "config": {"max_terms": 0}}]},
      "task 'chain_sum': max_terms must be",
    ),
    (
      {"tasks": [{"name": "chain_sum", "config": {"min_terms": "a"}}]},
      "task 'chain_sum': '>' not supported",
    ),
    pytest.param(  # which the task refuses as it makes its first problem
      {"tasks": [{"name": "chain_sum", "config": {"min_terms": 2.5, "max_terms": 3.5}}]},
      "task 'chain_sum': .*int",
      marks=pytest.mark.filterwarnings("ignore:randrange"),
    ),
    ({"tasks": [{"name": "chain_sum", "weight": "1"}]}, "'chain_sum' has the weight '1', and not"),
    ({"tasks": [{"name": "chain_sum", "weight": -1}]}, "the weight -1, and not a number from 0"),
    ({"prompt": 'As {"a": 1}. {question}'}, "prompt 'As .*' is no template of {question} alone"),
    ({"prompt": "Compute this."}, "prompt 'Compute this.' is no template of {question}"),
    ({"completion": "{question}"}, "completion '{question}' is no template of {answer} alone"),
    ({"tasks": [{"nam": "chain_sum"}]}, "takes no 'nam'; did you mean 'name'"),
    ({"tasks": []}, "at least one task"),
    ({"split": "eval"}, "split 'eval' is neither"),
    (
      {"tasks": [{"name": "chain_sum", "config": {"max_terms": 2, "max_digits": 1}}]},
      "too few different train problems: 1.. rows of 300",
    ),
    ({"sized": 3}, "source 'reasoning_gym' takes no 'sized'; did you mean 'size'"),
  ],
)
def test_reasoning_gym_refuses(change, message):
  with pytest.raises(ValueError, match=message):
    sources.build({**GYM, **change})
