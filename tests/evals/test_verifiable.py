"""Accuracy by generation, with the model's answers known in advance."""

import json

import jax
import numpy as np
import pytest

from research import generation
from research.core.config import ConfigError
from research.evals import build, verifiable
from research.evals.bootstrap import wilson
from research.evals.verifiable import Verifiable

ROWS = [
  {"prompt": [{"role": "user", "content": "2 + 3"}], "answer": "5", "task": "sum"},
  {"prompt": "4 + 4 =", "answer": 8, "task": "sum"},
  {"messages": [{"role": "user", "content": "3 * 3"}], "answer": "9", "task": "product"},
  {"prompt": "1 * 1 =", "answer": "1", "task": "product"},
]
PROMPTS = ["[user]2 + 3<eos>[assistant]", "4 + 4 =", "[user]3 * 3<eos>[assistant]", "1 * 1 ="]
# A right answer after a wrong one, a wrong one after a right one, none, one that was cut off.
ANSWERS = [("4, no: 5.", True), ("8? 9", True), ("nine", True), ("it is 1", False)]


@pytest.fixture
def data(tmp_path):
  path = tmp_path / "problems.jsonl"

  def write(rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "jsonl", "path": str(path), "cache": str(tmp_path / "cache")}

  return write


@pytest.fixture
def scripted(monkeypatch, tokenizer):
  """`generate` gives ANSWERS, and notes what it was asked."""
  asked = {}

  def generate(model, variables, prompts, sampler, *, progress, eos_ids, **settings):
    asked.update(prompts=[tokenizer.decode(p, False) for p in prompts], sampler=sampler, **settings)
    progress(len(prompts))
    return [
      generation.Completion(
        i, 0, tokenizer.encode(text) + [*eos_ids][: int(finished)], [], finished
      )
      for i, (text, finished) in enumerate(ANSWERS)
    ]

  monkeypatch.setattr(verifiable.generation, "generate", generate)
  return asked


def test_metrics_records_and_samples(scripted, tokenizer, data):
  evaluator = Verifiable(data(ROWS), max_new_tokens=17, batch_size=3, seed=4, shown=2)
  result = evaluator(None, {}, tokenizer)
  assert scripted["prompts"] == PROMPTS
  assert scripted["sampler"] == generation.Sampler()
  assert (scripted["max_new_tokens"], scripted["batch_size"], scripted["seed"]) == (17, 3, 4)
  assert result.metrics == {
    "accuracy": 0.5,
    "accuracy/sum": 0.5,
    "accuracy/product": 0.5,
    "unparsable": 0.25,
    "unfinished": 0.25,
    "length": sum(len(tokenizer.encode(text)) + finished for text, finished in ANSWERS) / 4,
    "problems": 4,
  }
  assert result.intervals["accuracy"] == wilson(2, 4)
  assert result.intervals["accuracy/sum"] == wilson(1, 2)
  outcomes = [(r["value"], r["correct"], r["unparsable"], r["unfinished"]) for r in result.records]
  assert outcomes == [("5", 1, 0, 0), ("9", 0, 0, 0), (None, 0, 1, 0), ("1", 1, 0, 1)]
  assert [record["completion"] for record in result.records] == [text for text, _ in ANSWERS]
  assert result.samples == [
    "> 2 + 3\n4, no: 5.\n[read 5; right]",
    "> 4 + 4 =\n8? 9\n[read 9; wrong: 8 was expected]",
  ]
  for metric, (field, _) in result.means.items():
    assert result.metrics[metric] == sum(r[field] for r in result.records) / 4


def test_ids_tell_problems_apart(scripted, tokenizer, data):
  first = Verifiable(data(ROWS))(None, {}, tokenizer)
  second = Verifiable(data([*ROWS[:3], {**ROWS[3], "answer": "2"}]))(None, {}, tokenizer)
  same = [a["id"] == b["id"] for a, b in zip(first.records, second.records, strict=True)]
  assert same == [True, True, True, False]


def test_generates_with_a_real_model(model, variables, tokenizer, data):
  """Greedy answers are the argmax of a whole forward pass, token after token."""
  result = Verifiable(data(ROWS), max_new_tokens=5)(model, variables, tokenizer)
  forward = jax.jit(lambda tokens: model.apply(variables, tokens))
  for prompt, record in zip(PROMPTS, result.records, strict=True):
    tokens = tokenizer.encode(prompt)
    new = []
    while len(new) < 5 and not set(new) & set(tokenizer.eos_ids):
      padded = np.zeros((1, 64), np.int32)
      padded[0, : len(tokens + new)] = tokens + new
      new.append(int(forward(padded)[0, len(tokens + new) - 1].argmax()))
    assert record["completion"] == tokenizer.decode(new)
    assert record["unfinished"] == (not set(new) & set(tokenizer.eos_ids))


def test_a_strategy_counts_and_keeps_what_it_found(model, variables, tokenizer, data):
  """Votes of a real model; each sample is judged, and what was plain before is as it was."""
  settings = {"max_new_tokens": 6, "sampler": {"name": "sample"}, "scorer": "exact"}
  plain = Verifiable(data(ROWS), **settings)(model, variables, tokenizer)
  section = {"name": "self_consistency", "samples": 3}
  result = Verifiable(data(ROWS), strategy=section, **settings)(model, variables, tokenizer)
  assert set(result.metrics) - set(plain.metrics) == {
    "tokens_written", "tokens_read", "calls", "any_correct", "agreement",
  }  # fmt: skip
  for name, field in (
    ("tokens_written", "tokens_written"),
    ("tokens_read", "tokens_read"),
    ("agreement", "agreement"),
    ("accuracy", "correct"),
  ):
    assert result.metrics[name] == sum(r[field] for r in result.records) / 4
    assert result.means[name] == (field, None)
  for ask, before, record in zip(PROMPTS, plain.records, result.records, strict=True):
    first, *others = record["samples"]
    assert len(others) == 2 and first["completion"] == before["completion"]
    assert record["id"] == before["id"] and record["tokens_read"] == len(tokenizer.encode(ask))
    assert record["tokens_written"] == sum(each["length"] for each in record["samples"])
    assert record["completion"] == record["samples"][record["trace"]["chosen"]]["completion"]
  single = Verifiable(data(ROWS), strategy={"name": "plain"}, **settings)
  found = single(model, variables, tokenizer)
  for before, record in zip(plain.records, found.records, strict=True):
    assert before == {key: record[key] for key in before}
  assert {key: found.metrics[key] for key in plain.metrics} == plain.metrics
  assert json.loads(json.dumps(result.records)) == result.records


def test_prompting_changes_what_is_read_and_not_which_problem_it_is(scripted, tokenizer, data):
  thought = {"name": "chain_of_thought", "instruction": "Think.", "begin": "So 1:"}
  result = Verifiable(data(ROWS), prompting=thought)(None, {}, tokenizer)
  asked = scripted["prompts"]
  plain = Verifiable(data(ROWS))(None, {}, tokenizer)
  assert asked[0] == "[user]2 + 3\n\nThink.<eos>[assistant]So 1:"
  assert asked[1] == "Think.\n\n4 + 4 =So 1:"
  assert scripted["prompts"] == PROMPTS
  assert [r["id"] for r in result.records] == [r["id"] for r in plain.records]
  assert [r["completion"] for r in result.records] == [f"So 1:{text}" for text, _ in ANSWERS]
  assert result.records[2]["value"] == "1"  # what an answer was made to begin with is of it


def test_strategies_are_checked_when_they_are_built():
  section = {"name": "verifiable", "data": {"name": "jsonl", "path": "x"}}
  with pytest.raises(ValueError, match="which would be equal"):
    build([{**section, "strategy": {"name": "best_of_n"}}])
  with pytest.raises(ConfigError, match="did you mean 'chain_of_thought'"):
    build([{**section, "prompting": {"name": "chain_of_thoughts"}}])


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"promt": "1", "answer": "1"}, "row 1 is without its columns: no 'prompt' and .* 'promt'"),
    ({"prompt": "1", "answers": "1"}, "row 1: there is no 'answer'; did you mean 'answers'"),
    (
      {"messages": [{"role": "assistant", "content": "1"}], "answer": "1"},
      "row 1 is of messages that end with an answer",
    ),
    ({"prompt": "1", "answer": "one"}, "row 1: the answer 'one' is not one number"),
  ],
)
def test_rows_that_cannot_be_scored(scripted, tokenizer, data, row, message):
  """Which is told before anything is generated."""
  with pytest.raises(ValueError, match=message):
    Verifiable(data([ROWS[0], row, *ROWS[2:]]))(None, {}, tokenizer)
  assert not scripted


def test_a_problem_without_a_reference_is_judged_by_its_verifier(scripted, tokenizer):
  tasks = [{"name": "propositional_logic"}]
  gym = {"name": "reasoning_gym", "tasks": tasks, "size": 4, "chat": False}
  with pytest.raises(ValueError, match="row 0: there is no 'answer'$"):
    Verifiable(gym)(None, {}, tokenizer)
  result = Verifiable(gym, scorer="reasoning_gym")(None, {}, tokenizer)
  assert [record["answer"] for record in result.records] == [None] * 4
  assert result.metrics["accuracy"] == 0
  assert result.samples[0].endswith("[read 4, no: 5.; wrong]")


def test_build_checks_names_and_arguments():
  section = {"name": "verifiable", "data": {"name": "jsonl", "path": "x"}}
  first, second = build([section, {**section, "label": "other", "scorer": "exact"}])
  assert (first.label, second.label, second.scorer) == ("verifiable", "other", "exact")
  with pytest.raises(ConfigError, match="two evaluators are labelled 'verifiable'"):
    build([section, section])
  with pytest.raises(ConfigError, match="did you mean 'verifiable'"):
    build([{**section, "name": "verifable"}])
  with pytest.raises(ConfigError, match="takes no 'max_tokens'; did you mean 'max_new_tokens'"):
    build([{**section, "max_tokens": 3}])
  with pytest.raises(ConfigError, match="'many', which is not int"):
    build([{**section, "shown": "many"}])
  with pytest.raises(ValueError, match="no scorer 'last_numbers'; did you mean 'last_number'"):
    build([{**section, "scorer": "last_numbers"}])
