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


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"promt": "1", "answer": "1"}, "row 1 has neither 'prompt' nor 'messages'; .* 'promt'"),
    ({"prompt": "1", "answers": "1"}, "row 1 has no 'answer'; did you mean 'answers'"),
    ({"messages": [{"role": "assistant", "content": "1"}], "answer": "1"}, "row 1: its messages"),
    ({"prompt": "1", "answer": "one"}, "'one' is not one number"),
  ],
)
def test_rows_that_cannot_be_scored(scripted, tokenizer, data, row, message):
  with pytest.raises(ValueError, match=message):
    Verifiable(data([ROWS[0], row, *ROWS[2:]]))(None, {}, tokenizer)


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
