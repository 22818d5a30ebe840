"""What is told at a run's end."""

import json
from types import SimpleNamespace

from research import evals
from research.loop.report import Report


def _save(directory, step, correct):
  records = [{"id": str(i), "correct": c} for i, c in enumerate(correct)]
  result = evals.Result(
    name="sums",
    metrics={"accuracy": sum(correct) / len(correct)},
    records=records,
    means={"accuracy": ("correct", None)},
    samples=[f"> 1 + 1 =\nanswer of step {step}"],
  )
  directory.mkdir(exist_ok=True)
  file = directory / f"{step}.json"
  file.write_text(json.dumps({"name": "a run", "results": [result.to_json()]}))


def _told(directory):
  lines = []
  context = SimpleNamespace(
    directory=directory, total_steps=7, say=lines.append, problem=SimpleNamespace(model=None)
  )
  Report().on_end(context)
  return "\n".join(lines)


def test_before_and_after(tmp_path):
  _save(tmp_path / "evaluations", 0, [0, 0, 1, 0])
  _save(tmp_path / "evaluations", 7, [1, 1, 1, 0])
  told = _told(tmp_path)
  assert "+0.5000" in told and "0.7500" in told and "0.2500" in told
  assert told.index("answer of step 0") < told.index("answer of step 7")
  assert f"python -m research.generate --run={tmp_path} --chat" in told


def test_without_evaluations(tmp_path):
  assert "--chat" in _told(tmp_path)
