"""Sweeps on this machine: every run once, failures told, stopped and gone on with."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from launch import runs
from launch.engines import local

METRICS = "metrics=('eval/sums/accuracy', 'loss'), seeds=(0, 1)"


def starts(directory):
  """The CPUs of each process that a run has had."""
  file = directory / "starts.txt"
  return file.read_text().splitlines() if file.exists() else []


def test_runs_are_run_once_and_told(world, command):
  code, out, err = command(f"{METRICS}, grid={{'rate': (1.0, 2.0)}}", "--parallel=3")
  assert code == 0, err
  lines = [line for line in out.splitlines() if "complete" in line]
  assert len(lines) == 4 and lines[-1].startswith("[4/4] complete")
  found = {line.split()[2]: line.rpartition(": ")[2] for line in lines}
  assert found["rate=2.0/seed_1"] == "eval/sums/accuracy 21, loss -21"
  directories = [world / "runs" / "study" / name for name in found]
  assert all(len(starts(directory)) == 1 for directory in directories)
  # Again: nothing is run. A point more: it alone.
  code, out, _ = command(f"{METRICS}, grid={{'rate': (1.0, 2.0, 3.0)}}")
  assert code == 0 and out.count("complete ") == 2
  assert all(len(starts(directory)) == 1 for directory in directories)
  assert len(starts(world / "runs" / "study" / "rate=3.0" / "seed_0")) == 1


def test_a_failing_run_neither_stops_the_rest_nor_vanishes(world, command):
  text = f"""{METRICS}, points={{
    "fails": {{"does": "fail"}}, "once": {{"does": "fail_once"}}, "refuses": {{"does": "refuse"}},
    "dies": {{"does": "die"}}, "ends": {{}}, "nan": {{"does": "nan"}}}}"""
  code, out, _ = command(text, "--parallel=2", "--tries=2")
  assert code == 1
  root = world / "runs" / "study"
  tries = {
    name: len(starts(root / name / "seed_0"))
    for name in ("fails", "once", "refuses", "dies", "ends")
  }
  assert tries == {"fails": 2, "once": 2, "refuses": 1, "dies": 2, "ends": 1}
  failed = [line for line in out.splitlines() if "failed" in line]
  assert sum("trying again" in line for line in failed) == 6  # of two seeds: fails, once, dies
  log = root / "fails" / "seed_0" / "log.txt"
  assert f"RuntimeError: no such luck; see {log.relative_to(world)}" in out
  assert "error: it cannot be" in out
  report = (root / "REPORT.md").read_text()
  assert "| fails/seed_1 | 2 | RuntimeError: no such luck |" in report
  assert "| dies/seed_0 | 2 | killed by SIGKILL (out of memory?) |" in report
  assert "| fails | 0 |  |  | 2 of 2 failed |" in report
  assert "2 not finite" in report
  # They are listed as what they are, and are tried again by the same command.
  code, out, _ = command(text, "--list")
  assert code == 0 and out.splitlines()[-1] == "6 complete, 6 failed"
  command(text)
  assert len(starts(root / "fails" / "seed_0")) == 4 and len(starts(root / "once" / "seed_0")) == 2


def test_each_of_several_runs_at_a_time_has_its_cpus(world, command):
  cpus = sorted(os.sched_getaffinity(0))
  if len(cpus) < 2:
    pytest.skip("one CPU cannot be shared out")
  text = "metrics=('loss',), grid={'rate': (1.0, 2.0, 3.0)}, seeds=(0,)"
  code, _, err = command(text, "--parallel=2", "--cpu_sets")
  assert code == 0, err
  found = {starts(world / "runs" / "study" / f"rate={r}" / "seed_0")[0] for r in (1.0, 2.0, 3.0)}
  assert found == {str(part) for part in local.cpu_sets(2)}
  assert sorted(os.sched_getaffinity(0)) == cpus
  code, _, err = command(text, f"--parallel={len(cpus) + 1}", "--cpu_sets")
  assert code == 2 and "too few" in err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_the_same_command_goes_on(world, describe, command, signum):
  text = "metrics=('loss',), points={'w': {'does': 'wait'}, 'v': {'does': 'wait'}}, seeds=(0, 1)"
  describe(text)
  script = textwrap.dedent(f"""
    import sys
    from launch import runs, sweep
    runs.TRAIN = ({str(world / "trainer.py")!r},)
    sys.exit(sweep.main(["--experiment=study", "--parallel=2"]))
  """)
  process = subprocess.Popen(
    [sys.executable, "-c", script],
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, "PYTHONPATH": str(__file__).partition("/tests/")[0]},
  )
  root = world / "runs" / "study"
  first = [root / "w" / "seed_0", root / "v" / "seed_0"]
  deadline = time.monotonic() + 60
  while not all((each / "metrics.jsonl").exists() for each in first):
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.02)
  # A second command does not run what is being run.
  code, _, err = command(text)
  assert code == 2 and "w/seed_0, v/seed_0: another process runs it" in err
  process.send_signal(signum)
  out, _ = process.communicate(timeout=60)
  assert process.returncode == 128 + signum
  assert out.splitlines()[-1] == "stopped; the same command goes on from there"
  assert all((each / "saved").exists() for each in first)
  code, out, _ = command(text, "--list")
  assert out.splitlines()[-1] == "2 new, 2 stopped" and "step 7" in out
  code, out, _ = command(text, "--parallel=4")
  assert code == 0 and out.count("complete ") == 4


def test_what_cannot_be_is_told_before_anything_runs(world, command):
  for text, told in (
    ("metrics=('loss',), grid={'rat': (1.0,)}", "rat=1.0/seed_0: config.py has no key 'rat'; did"),
    ("metrics=('loss',), grid={'rate': ('much',)}", "rate=much"),
    ("metrics=('loss',), baseline='ends'", "baseline 'ends' is no point"),
    ("metrics='loss'", "study/sweep.py:4: metrics is a tuple"),
    ("metrics=('loss',), grids={}", "study/sweep.py:4: .*unexpected keyword argument 'grids'"),
  ):
    code, _, err = command(text)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert re.search(told, err), err
  assert not (world / "runs").exists()


def test_a_point_that_became_another_is_told(world, command):
  assert command("metrics=('loss',), seeds=(0,), points={'a': {'rate': 1.0}}")[0] == 0
  code, _, err = command("metrics=('loss',), seeds=(0,), points={'a': {'rate': 2.0}}")
  assert code == 2 and "runs/study/a/seed_0 holds a run with other values of rate" in err
  code, _, err = command("metrics=('los',), seeds=(0,), points={'a': {'rate': 1.0}}", "--report")
  assert code == 2 and "no run tells 'los'; did you mean 'loss'" in err


def test_commands_are_printed_as_they_would_be_run(world, command):
  text = "metrics=('loss',), seeds=(3,), grid={'shape': {'deep': {'name': 'deep', 'layers': 9}}}"
  code, out, _ = command(text, "--dry_run", "--config.rate=4.0", "--directory=elsewhere")
  assert code == 0 and not (world / "elsewhere").exists()
  assert "--config=config.py --config.rate=4.0" in out
  assert """'--config.shape={'"'"'name'"'"': '"'"'deep'"'"', '"'"'layers'"'"': 9}'""" in out
  assert out.endswith("--config.seed=3 --config.directory=elsewhere/shape=deep/seed_3\n")
  assert command(text, "--config.rate=4.0", "--directory=elsewhere")[0] == 0
  assert (world / "elsewhere" / "shape=deep" / "seed_3" / "results.json").exists()
  assert command(text, "--dry_run", "--config.rate=4.0", "--directory=elsewhere")[1] == ""


def test_a_run_that_leaves_nothing_has_failed(world, command, monkeypatch):
  monkeypatch.setattr(runs, "TRAIN", ("-c", "print('fine')"))
  code, out, _ = command("metrics=('loss',), seeds=(0,)", "--tries=1")
  assert code == 1 and "with no results.json here" in out
