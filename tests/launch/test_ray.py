"""Tasks of a Ray that is started here; Ray is not among what tests install."""

import pytest

pytest.importorskip("ray")


def test_tasks_run_and_their_failures_are_told(command, world):
  text = """metrics=('loss',), seeds=(0, 1), points={
    'ends': {}, 'fails': {'does': 'fail'}, 'once': {'does': 'fail_once'}}"""
  code, out, err = command(text, "--on=ray", "--address=local", "--tries=2")
  assert code == 1, err
  assert out.count("complete ") == 4 and "RuntimeError: no such luck" in out
  root = world / "runs" / "study"
  assert len((root / "fails" / "seed_1" / "starts.txt").read_text().splitlines()) == 2
  assert "| fails | 0 |  |  | 2 of 2 failed |" in (root / "REPORT.md").read_text()
  code, _, err = command(text, "--on=ray", "--address=local", "--gpus=1")
  assert code == 2 and "a run asks for 1 GPU, and the whole Ray cluster has 0" in err
