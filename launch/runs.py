"""A run of a sweep: its directory, which is its identity, its command, and how it stands."""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from launch.description import Sweep
from launch.points import Point
from research.core import config as config_lib
from research.core.config import ConfigError
from research.io.checkpoint import write_json
from research.loop import identity

TRAIN = ("-m", "research.train")  # what Python is told to run
LOG = "log.txt"
_ATTEMPTS = "attempts.json"
_LOCK = "lock"
_TAIL = 16_384  # bytes at the end of a metrics file, more than a line

COMPLETE, FAILED, STOPPED, RUNNING, NEW = "complete", "failed", "stopped", "running", "new"
INTERRUPTED = (130, 143)  # exit codes of a run that was asked to stop, and saved


@dataclasses.dataclass(frozen=True)
class Run:
  """One point from one seed.

  Attributes:
    point, seed: which.
    directory: where it lives.
    flags: of `research.train`.
  """

  point: Point
  seed: int
  directory: Path
  flags: tuple[str, ...]

  @property
  def name(self) -> str:
    """Its own within the sweep."""
    return f"{self.point.name}/seed_{self.seed}"

  def command(self, python: str = sys.executable) -> list[str]:
    """What starts it, goes on with it, or tells that it is complete."""
    return [python, *TRAIN, *self.flags]


@dataclasses.dataclass(frozen=True)
class Attempt:
  """One process of a run, from its start to its end.

  Attributes:
    code: its exit code; below 0 the signal that ended it.
    seconds: how long it took.
    error: the line that says what went wrong; empty where nothing did.
  """

  code: int
  seconds: float
  error: str


def of(sweep: Sweep, points: Iterable[Point], root: Path, extra: Sequence[str] = ()) -> list[Run]:
  """The runs of these points, all points from the first seed before any from the second.

  Args:
    sweep: the description.
    points: some of its points.
    root: the sweep's directory.
    extra: overrides of all runs, as flags of `research.train`.
  """
  listed = list(points)
  runs = []
  for seed in sweep.seeds:
    for point in listed:
      directory = root / point.name / f"seed_{seed}"
      overrides = {**point.overrides, "seed": seed, "directory": str(directory)}
      told = [f"--config.{key}={_as_flag(value)}" for key, value in overrides.items()]
      runs.append(Run(point, seed, directory, (f"--config={sweep.config}", *extra, *told)))
  return runs


def require_possible(runs: Iterable[Run]) -> None:
  """Reads each run's config, as `research.train` will.

  Raises:
    ConfigError: a key or a value of one cannot be, or its directory holds another run.
  """
  for run in runs:
    try:
      config = config_lib.from_command_line(run.flags)
    except ConfigError as error:
      raise ConfigError(f"{run.name}: {error}") from error
    if keys := identity.changed(run.directory, config):
      raise ConfigError(
        f"{run.directory} holds a run with other values of {', '.join(keys)}; set them back, name "
        "the point anew, or give another --directory"
      )


def lock(directory: Path) -> int | None:
  """A file descriptor that holds the run until it and its copies are closed; None: another does.

  A run's process inherits it, so that the run is held for as long as that lives, whatever became
  of what started it.
  """
  directory.mkdir(parents=True, exist_ok=True)
  held = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
  try:
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(held)
    return None
  return held


def attempts(run: Run) -> list[Attempt]:
  """All that ended so far, in order."""
  return [
    Attempt(each["code"], each["seconds"], each["error"]) for each in _recorded(run.directory)
  ]


def record(run: Run, attempt: Attempt) -> None:
  """Adds an attempt that ended."""
  ended = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  run.directory.mkdir(parents=True, exist_ok=True)
  each = [*_recorded(run.directory), {"ended": ended, **dataclasses.asdict(attempt)}]
  write_json(run.directory / _ATTEMPTS, each)


def state(run: Run) -> str:
  """`complete`, `running`, `failed`, `stopped` (it will go on where it was) or `new`."""
  if (run.directory / "results.json").exists():
    return COMPLETE
  if not run.directory.exists():
    return NEW
  held = lock(run.directory)
  if held is None:
    return RUNNING
  os.close(held)
  if ended := attempts(run):
    return STOPPED if ended[-1].code in INTERRUPTED else FAILED
  return STOPPED if (run.directory / "config.json").exists() else NEW


def step(run: Run) -> int:
  """The last step that its metrics tell; 0 where they tell none."""
  file = run.directory / "metrics.jsonl"
  if not file.exists():
    return 0
  with file.open("rb") as lines:
    lines.seek(max(0, file.stat().st_size - _TAIL))
    whole = [line for line in lines.read().splitlines(keepends=True) if line.endswith(b"\n")]
  # The first of several may have been cut; the last was not.
  return json.loads(whole[-1])["step"] if whole else 0


def figures(run: Run) -> dict[str, float]:
  """The numbers that a complete run found: its `results.json`, with those of its last evaluation.

  Of a run in stages they are the last one's, but for what is summed over all.
  """
  found = json.loads((run.directory / "results.json").read_text())
  if "stages" in found:
    found = {**found["stages"][list(found["stages"])[-1]], **found}
  last = found.get("evaluations") or [{}]
  told = {**last[-1], **found}
  return {name: float(value) for name, value in told.items() if isinstance(value, int | float)}


def _recorded(directory: Path) -> list[dict[str, Any]]:
  file = directory / _ATTEMPTS
  return json.loads(file.read_text()) if file.exists() else []


def _as_flag(value: Any) -> str:
  """As `research.core.config` reads it back: text as it is, all else as Python writes it."""
  return value if isinstance(value, str) else repr(value)
