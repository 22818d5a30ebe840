"""The loop around an engine, where the engine is a script of what happens."""

import os
import signal
from pathlib import Path

import pytest

from launch import Sweep, driver, points, runs
from launch.runs import Attempt


class Engine:
  """Plays `acts`, one each time it is asked, and keeps what was done to it."""

  at_once = None
  poll_seconds = 0.0

  def __init__(self, *acts):
    self.acts = list(acts)
    self.done = []

  def start(self, given):
    self.done.append(("start", *(run.name for run in given)))
    self.given = given

  def ended(self):
    return self.acts.pop(0)(self)

  def stop(self, signum):
    self.done.append(("stop", signum))

  def kill(self):
    self.done.append(("kill",))

  def close(self):
    self.done.append(("close",))


def _interrupt(engine):
  os.kill(os.getpid(), signal.SIGINT)
  return []


def _end(code, error=""):
  return lambda engine: [(run, Attempt(code, 1.0, error)) for run in engine.given]


@pytest.fixture
def drive(tmp_path, monkeypatch):
  """`drive(engine) -> (code, lines)`, of a sweep of one run."""
  monkeypatch.chdir(tmp_path)
  sweep = Sweep("config.py", ("loss",), seeds=(0,))
  listed = runs.of(sweep, points.expand(sweep), Path("runs"))

  def call(engine):
    lines = []
    work = driver.Driver(engine, tries=2, total=1, metrics=("loss",), say=lines.append)
    return work.drive(listed), lines, listed[0]

  return call


def test_the_first_signal_asks_and_the_second_ends(drive):
  engine = Engine(_interrupt, lambda _: [], _interrupt, _end(-9))
  code, lines, run = drive(engine)
  assert code == 130 and lines[-1] == "stopped; the same command goes on from there"
  assert engine.done == [("start", "config/seed_0"), ("stop", 2), ("kill",), ("close",)]
  # It was not the run that went wrong.
  assert runs.state(run) == runs.STOPPED and runs.attempts(run)[-1].code == 130


def test_a_run_that_fails_while_it_is_stopped_has_failed_and_is_not_tried_again(drive):
  engine = Engine(_interrupt, _end(1, "no disk"))
  code, lines, run = drive(engine)
  assert code == 130 and "failed    config/seed_0 after 1 s: no disk" in lines[-2]
  assert len(engine.done) == 3 and runs.state(run) == runs.FAILED


def test_an_end_without_results_is_a_failure(drive):
  code, lines, run = drive(Engine(_end(0), _end(0)))
  assert code == 1 and sum("with no results.json here" in line for line in lines) == 2
  assert len(runs.attempts(run)) == 2


def test_nothing_runs_on_where_the_loop_breaks(drive):
  def broken(engine):
    raise OSError("no such host")

  engine = Engine(broken)
  with pytest.raises(OSError, match="no such host"):
    drive(engine)
  assert engine.done[-2:] == [("stop", signal.SIGTERM), ("close",)]
