"""The distillation experiment: its rows, and that each of its runs can be."""

import json
from pathlib import Path

import pytest

from experiments.distillation import rows
from experiments.distillation.sweep import get_sweep
from launch import points, runs
from research import models, objectives
from research.core import config as config_lib
from research.loop import stages

ROOT = Path(__file__).parents[2]
LLAMA = {
  "model_type": "llama",
  "vocab_size": 16,
  "hidden_size": 4,
  "intermediate_size": 4,
  "num_attention_heads": 1,
}


@pytest.fixture(autouse=True)
def here(monkeypatch):
  monkeypatch.chdir(ROOT)


def _texts(tmp_path, sentences):
  """Files whose sentences of ten words are numbered through."""
  files = []
  for number in range(2):
    file = tmp_path / f"{number}.txt"
    told = range(number * sentences, (number + 1) * sentences)
    file.write_text("\n".join(f"Number {i} is a sentence of as many words: ten." for i in told))
    files.append(file)
  return files


def test_pieces_are_whole_sentences_and_prompts_go_on_to_the_rest(tmp_path, monkeypatch):
  monkeypatch.setattr(rows, "WORDS", 25)
  monkeypatch.setattr(rows, "TRAIN", 8)
  monkeypatch.setattr(rows, "HELD_OUT", 2)
  files = _texts(tmp_path, 64)
  found = rows.of_texts(files)
  assert len(found) == 10
  for row in found:
    whole = row["prompt"] + row["completion"]
    assert len(whole.split()) == 30 and whole.startswith("Number ") and whole.endswith("ten.")
    assert len(row["prompt"].split()) == 8  # a quarter of 30
  first = [int(row["prompt"].split()[1]) for row in found]
  assert first == sorted(first) and first[0] == 0 and first[-1] > 100  # spread over both files
  rows.write(found, tmp_path / "data")
  train, held_out = (
    [json.loads(line) for line in (tmp_path / f"data/{name}.jsonl").read_text().splitlines()]
    for name in ("train", "held_out")
  )
  assert train == found[:8]
  assert [row["text"] for row in held_out] == [r["prompt"] + r["completion"] for r in found[8:]]
  rows.write(found, tmp_path / "data")  # the same again is no harm
  with pytest.raises(ValueError, match="holds other rows"):
    rows.write(found[::-1], tmp_path / "data")


def test_what_cannot_be(tmp_path, capsys):
  (tmp_path / "latin.txt").write_bytes(b"caf\xe9.")
  for name, told in (("0", "needs 360"), ("latin", "latin.txt is not UTF-8"), ("none", "none.txt")):
    _texts(tmp_path, 3)
    assert rows.main([f"--output={tmp_path}/data", "--text", f"{tmp_path}/{name}.txt"]) == 2
    assert told in capsys.readouterr().err
  assert not (tmp_path / "data").exists()


def test_problems_are_written_out(monkeypatch):
  monkeypatch.setattr(rows, "TRAIN", 3)
  monkeypatch.setattr(rows, "HELD_OUT", 2)
  found = rows.of_problems()
  assert len({row["prompt"] for row in found}) == 5
  for row in found:
    assert row["prompt"].startswith("Question: ") and row["prompt"].endswith("\nAnswer:")
    assert "####" in row["completion"]


def test_each_run_can_be(tmp_path):
  sweep = get_sweep()
  every = runs.of(sweep, points.expand(sweep), tmp_path)
  runs.require_possible(every)
  student, teacher = (models.build({**LLAMA, "num_hidden_layers": n}) for n in (15, 30))
  taught = 0
  for run in every[: len(sweep.points)]:  # from one seed
    config = config_lib.from_command_line(run.flags)
    lesson = objectives.Lesson(student, teacher, config.train.steps, 0)
    objectives.build(config.objective, (), lesson if config.teacher.source else None)
    taught += bool(config.teacher.source)
  assert taught == len(sweep.points) - 2  # cross-entropy and what the teacher wrote need none


def test_stages_take_as_many_steps(tmp_path):
  sweep = get_sweep()
  (run,) = (
    run
    for run in runs.of(sweep, points.expand(sweep), tmp_path)
    if run.name == "progressive/seed_0"
  )
  config = config_lib.from_command_line(run.flags)
  told = [stage.take() for stage in config.stages]
  values = {key: value for key, value in config.to_dict().items() if key != "stages"}
  assistant, student = stages.configs(values, told).values()
  assert assistant.train.steps + student.train.steps == config.train.steps
  assert assistant.model.student.layers > student.model.student.layers == 15
  assert student.teacher.source == str(run.directory / "stages/assistant/model")
  assert student.model.source == student.teacher.source != assistant.teacher.source
