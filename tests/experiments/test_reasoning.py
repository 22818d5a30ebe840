"""The experiment's sections, its votes of fewer answers, and its table."""

import json
from pathlib import Path

import pytest

from experiments import reasoning
from experiments.reasoning import __main__ as experiment
from experiments.reasoning import config, training
from research import evals
from research.data import sources
from research.evals import bootstrap


def sample(text, correct, length):
  return {"completion": text, "correct": correct, "length": length, "unfinished": 0}


def result(name, *records):
  told = [
    {
      "correct": samples[0]["correct"],
      "tokens_written": sum(each["length"] for each in samples),
      "tokens_read": read,
      "calls": 1,
      "samples": samples,
    }
    for read, *samples in records
  ]
  return {"name": name, "records": told}


VOTE = result(
  config.VOTE,
  (10, sample("3", 0, 2), sample("it is 4", 1, 4), sample("4.0", 1, 6), sample("5", 0, 8)),
  (20, sample("7", 1, 2), sample("none", 0, 2), sample("none", 0, 2), sample("8", 0, 2)),
)


def test_every_strategy_can_be_built():
  evaluators = evals.build([config.evaluator(name) for name in config.STRATEGIES])
  assert [each.label for each in evaluators] == list(config.STRATEGIES)
  assert {len(each.data["tasks"]) for each in evaluators} == {2}
  train = config.get_config("vote/train").eval.evaluators[0]
  assert (train["data"]["split"], train["label"]) == ("train", "vote")
  assert training.get_config().eval.evaluators[0] == config.evaluator("plain")
  with pytest.raises(ValueError, match="no strategy 'vot'; did you mean 'vote'"):
    config.get_config("vot")


def test_exemplars_are_no_problem_that_is_asked():
  lines = (Path(reasoning.__file__).parent / "shots.jsonl").read_text().splitlines()
  shots = [json.loads(line) for line in lines]
  assert {tuple(row) for row in shots} == {("question", "reasoning", "answer")}
  asked = sources.build(config.evaluator("plain")["data"])
  asked = {asked[i]["question"] for i in range(len(asked))}
  assert len(asked) == config.SIZE and asked.isdisjoint(row["question"] for row in shots)


def test_votes_of_the_first_answers():
  told = [experiment.voted(VOTE, count) for count in (1, 3, 4)]
  assert [[r["correct"] for r in each["records"]] for each in told] == [[0, 1], [1, 1], [1, 1]]
  assert [r["tokens_written"] for r in told[1]["records"]] == [12, 6]
  assert [r["tokens_read"] for r in told[1]["records"]] == [10, 20]


def test_each_stands_beside_the_vote_of_as_many_tokens(monkeypatch):
  monkeypatch.setattr(experiment, "VOTES", (1, 2, 4))  # of 2, 5 and 14 tokens
  cheap = result("cheap", (5, sample("4", 1, 3)), (5, sample("8", 0, 4)))
  dear = result("dear", (5, sample("4", 1, 50)), (5, sample("7", 1, 50)))
  lines = experiment.table([cheap, VOTE, dear]).splitlines()
  cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
  assert [row[0] for row in cells[2:]] == ["cheap", "vote of 1", "vote of 2", "vote of 4", "dear"]
  low, high = bootstrap.wilson(1, 2)
  assert cells[2][1:6] == ["0.500", f"{low:.3f} to {high:.3f}", "3.5", "5.0", "1.0"]
  assert cells[2][6:8] == ["vote of 2", "+0.000"]
  assert cells[3][6:] == ["", "", ""]
  assert cells[6][6:] == ["vote of 4, which is fewer tokens", "+0.000", "+0.000 to +0.000"]
  assert experiment.table([cheap]).splitlines()[2].endswith("|  |  |  |")


def test_what_is_there_is_not_measured_again(monkeypatch, tmp_path, capsys):
  (tmp_path / "vote.json").write_text(json.dumps(VOTE))
  flags = ["reasoning", "--strategies=vote", f"--directory={tmp_path}"]
  monkeypatch.setattr("sys.argv", [*flags, "--size=2"])
  monkeypatch.setattr(experiment, "VOTES", (1, 2))
  assert experiment.main() == 0
  assert capsys.readouterr().out.strip() == (tmp_path / "table.md").read_text().strip()
  assert (tmp_path / "plot.png").exists()
  monkeypatch.setattr("sys.argv", [*flags, "--size=3"])
  assert experiment.main() == 2
  assert "is of 2 problems, not 3" in capsys.readouterr().err
