"""The preference experiment: its pairs, its picture, and that each of its runs can be."""

import json
from pathlib import Path

import pytest

from experiments.preference import frontier, pairs
from experiments.preference import sweep as own
from experiments.preference_public import sweep as public
from launch import points, runs
from research import evals, objectives
from research.core import config as config_lib
from research.data import preferences

ROOT = Path(__file__).parents[2]
PROBLEM = {"prompt": [{"role": "user", "content": "2 + 3"}], "answer": "5"}


@pytest.fixture(autouse=True)
def here(monkeypatch):
  monkeypatch.chdir(ROOT)


def test_right_answers_meet_wrong_ones():
  answers = ["It is 5.", "4", "It is 5.", "2 + 3 = 5", "", "no idea", "5", "6"]
  found = pairs.of_problem(PROBLEM, answers)
  told = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in found]
  assert told == [("It is 5.", "4"), ("2 + 3 = 5", "no idea")]
  assert all(row["prompt"] == PROBLEM["prompt"] for row in found)
  assert pairs.of_problem(PROBLEM, ["5", "five is 5"]) == []


def _public(prompt="Hello?", chosen="Hi.", rejected="No.", **change):
  said = [{"from": "system", "value": "Be kind."}, {"from": "human", "value": prompt}]
  row = {"conversations": said, "chosen": {"from": "gpt", "value": chosen}}
  return row | {"rejected": {"from": "gpt", "value": rejected}} | change


def test_public_pairs(tmp_path, capsys, byte_tokenizer):
  listed = [_public(prompt=f"Hello {i}?") for i in range(5)]
  listed += [_public(prompt="x" * 700), _public(chosen="No. "), _public(rejected=" ")]
  file = tmp_path / "public.json"
  file.write_text(json.dumps(listed))
  assert pairs.main([f"--public={file}", f"--output={tmp_path}/data"]) == 0
  assert "4 pairs, and 1 that are held out" in capsys.readouterr().out
  read = {
    name: [json.loads(line) for line in (tmp_path / f"data/{name}.jsonl").read_text().splitlines()]
    for name in ("train", "held_out", "judged")
  }
  for row in read["train"] + read["held_out"]:
    example = preferences.tokenize_pair(row, byte_tokenizer)
    texts = [byte_tokenizer.decode(side.tokens, False) for side in (example, example.rival)]
    assert texts[0].startswith("system: Be kind.<eos>user: Hello ") and "assistant: Hi." in texts[0]
    assert "assistant: No." in texts[1]
  labels = [preferences.tokenize_judged(row, byte_tokenizer).told for row in read["judged"]]
  assert labels == [{"label": 1.0}, {"label": 0.0}] * 4


@pytest.mark.parametrize(
  ("content", "told"),
  [
    ([_public(), {"chosen": {}}], "row 1 has no 'conversations'"),
    ([_public(chosen="No.")], "no row has a prompt of at most 600 characters and two answers"),
    ({"a": 1}, "row 0 has no 'conversations'"),
    ([_public()], "0 pairs to train on and 1 held out are too few"),
  ],
)
def test_files_that_are_none(tmp_path, capsys, content, told):
  file = tmp_path / "public.json"
  file.write_text(json.dumps(content))
  assert pairs.main([f"--public={file}", f"--output={tmp_path}/data"]) == 2
  assert told in capsys.readouterr().err


@pytest.mark.parametrize("described", [own, public])
def test_each_run_can_be(tmp_path, described):
  sweep = described.get_sweep()
  every = runs.of(sweep, points.expand(sweep), tmp_path)
  runs.require_possible(every)
  read = set()
  for run in every[: len(sweep.points)]:  # from one seed
    config = config_lib.from_command_line(run.flags)
    objectives.build(config.objective)
    built = evals.build([section.take() for section in config.eval.evaluators])
    assert "pairs" in [evaluator.label for evaluator in built]
    read |= {config.data.train.source.path, built[-1].data["path"]}
  data = described.DATA
  assert read == {f"{data}/{name}.jsonl" for name in ("train", "held_out", "judged")}


def test_the_frontier_is_of_points_that_tell_both(tmp_path, capsys):
  assert frontier.main([str(tmp_path)]) == 2 and "--report writes it" in capsys.readouterr().err
  lines = ["point,metric,mean,low,high"]
  lines += [f"dpo,{frontier.REWARD},0.5,0.4,0.6", f"dpo,{frontier.DISTANCE},0.02,,"]
  lines += [f"reward_model,{frontier.REWARD},,,", "dpo,loss,9.0,8.0,10.0"]
  (tmp_path / "results.csv").write_text("\n".join(lines) + "\n")
  assert frontier.main([str(tmp_path)]) == 0
  assert capsys.readouterr().out == "dpo: accuracy 0.500 at a KL of 0.0200\n"
  assert (tmp_path / "frontier.png").stat().st_size > 1000
