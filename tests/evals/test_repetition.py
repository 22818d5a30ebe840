"""Repetition of completions that are known."""

import json

import pytest

from research import generation
from research.evals import build, repetition
from research.evals.bootstrap import wilson

PROMPTS = ["one", [{"role": "user", "content": "two"}], "three"]
# All different; a loop of "ab "; too short for a 4-gram.
WRITTEN = [("the quick brown fx", True), ("so: " + "ab " * 8, False), ("ok", True)]


@pytest.fixture
def section(tmp_path):
  path = tmp_path / "prompts.jsonl"
  path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
  data = {"name": "jsonl", "path": str(path), "cache": str(tmp_path / "cache")}
  return {"name": "repetition", "data": data}


def test_known_completions(section, tokenizer, monkeypatch):
  asked = {}

  def generate(model, variables, prompts, sampler, *, progress, eos_ids, **settings):
    asked.update(settings, prompts=[tokenizer.decode(prompt, False) for prompt in prompts])
    return [
      generation.Completion(i, 0, tokenizer.encode(text) + [*eos_ids][: int(done)], [], done)
      for i, (text, done) in enumerate(WRITTEN)
    ]

  monkeypatch.setattr(repetition.generation, "generate", generate)
  result = build([{**section, "max_new_tokens": 7, "seed": 3}])[0](None, None, tokenizer)
  assert asked["prompts"] == ["one", "[user]two<eos>[assistant]", "three"]
  assert (asked["max_new_tokens"], asked["seed"]) == (7, 3)
  texts = [text for text, _ in WRITTEN]
  for n in (1, 2, 3):
    grams = [text[i : i + n] for text in texts for i in range(len(text) - n + 1)]
    assert result.metrics[f"distinct_{n}"] == pytest.approx(len(set(grams)) / len(grams))
  # "so: ab ab …" has 25 4-grams, of which "so: ", "o: a", ": ab", " ab " and its two turns are new.
  assert [record.get("seq_rep_4") for record in result.records] == [
    0,
    pytest.approx(1 - 6 / 25),
    None,
  ]
  assert result.metrics["seq_rep_4"] == pytest.approx((1 - 6 / 25) / 2)
  assert result.metrics["looping"] == pytest.approx(1 / 3) == result.metrics["unfinished"]
  assert result.intervals["looping"] == wilson(1, 3)
  assert result.metrics["length"] == pytest.approx((18 + 28 + 2) / 3)
  assert result.samples == ["so: ab ab ab ab ab ab ab ab\n[ends in a loop of 3 tokens]"]


@pytest.mark.parametrize(
  ("tokens", "period"),
  [
    ([7] * 16, 1),
    ([7] * 15, None),  # "..." is no loop
    ([1, 2, 3] * 5 + [1], 3),  # 16 tokens, the last turn begun
    ([9, *range(6), *range(6), *range(6)], 6),
    ([*range(8), *range(8)], None),  # twice is no loop
    ([7] * 20 + [1], None),  # it was left
    ([], None),
  ],
)
def test_loop(tokens, period):
  assert repetition.loop(tokens) == period


def test_errors(section, model, variables, tokenizer, tmp_path):
  (tmp_path / "prompts.jsonl").write_text('{"promt": "a"}\n')
  with pytest.raises(ValueError, match="row 0 is without its columns.*'promt'"):
    build([section])[0](model, variables, tokenizer)
