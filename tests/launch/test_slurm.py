"""Jobs of submitit, whose own local cluster stands for Slurm."""

import functools
import os
import signal
import time
from pathlib import Path

import pytest

from launch import Sweep, points, runs
from launch.engines import slurm

submitit = pytest.importorskip("submitit")


def test_an_array_of_jobs_is_run_and_told(command, world, monkeypatch):
  monkeypatch.setattr(slurm, "Slurm", functools.partial(slurm.Slurm, cluster="local"))
  text = "metrics=('loss',), seeds=(0,), points={'ends': {}, 'fails': {'does': 'fail'}}"
  code, out, err = command(text, "--on=slurm", "--slurm=timeout_min=2", "--tries=1")
  assert code == 1, err
  assert "complete  ends/seed_0" in out and "RuntimeError: no such luck" in out


def test_a_job_whose_time_is_up_has_its_run_save_and_goes_on(world):
  sweep = Sweep("config.py", ("loss",), points={"waits": {"does": "wait"}}, seeds=(0,))
  (run,) = runs.of(sweep, points.expand(sweep), Path("runs"))
  engine = slurm.Slurm(Path("slurm"), None, {}, cluster="local")
  engine.start([run])
  (job,) = engine._jobs.values()
  _until(lambda: (run.directory / "metrics.jsonl").exists())
  controller = job.job_id.partition("_")[0]
  children = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
  for task in children:  # as Slurm does before it ends a job
    os.kill(int(task), signal.SIGUSR2)
  found = _until(engine.ended)
  assert found[0][0] == run and found[0][1].code == 0
  assert (run.directory / "saved").exists()
  assert len((run.directory / "starts.txt").read_text().splitlines()) == 2


def test_what_slurm_cannot_do_is_told(command, world, monkeypatch):
  text = "metrics=('loss',)"
  code, _, err = command(text, "--on=slurm", "--slurm=timeout_min")
  assert code == 2 and "--slurm=timeout_min is not KEY=VALUE" in err
  monkeypatch.setenv("PATH", str(world))
  code, _, err = command(text, "--on=slurm")
  assert code == 2 and err.startswith('error: --on=slurm: Could not detect "srun"')
  monkeypatch.setattr(slurm, "Slurm", functools.partial(slurm.Slurm, cluster="local"))
  code, _, err = command(text, "--on=slurm", "--slurm=minutes=3")
  assert code == 2 and "minutes" in err and err.count("\n") == 1


def _until(there):
  deadline = time.monotonic() + 60
  while not (found := there()):
    assert time.monotonic() < deadline
    time.sleep(0.05)
  return found
