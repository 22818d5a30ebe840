"""Runs as processes of this machine, a number at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from launch.process import BUSY, Process
from launch.runs import Attempt, Run
from research.core.config import ConfigError


class Local:
  """`at_once` processes, each on CPUs of its own where `cpu_sets` are given.

  Args:
    at_once: how many.
    cpu_sets: which CPUs each of them has; empty: all have all.
    command: what starts a run; by default its own command.
  """

  poll_seconds = 0.1

  def __init__(
    self,
    at_once: int,
    cpu_sets: Sequence[Sequence[int]] = (),
    command: Callable[[Run], list[str]] = Run.command,
  ):
    self.at_once: int | None = at_once
    self._command = command
    self._free = list(cpu_sets) or [()] * at_once
    self._running: dict[Run, tuple[Process, Sequence[int]]] = {}
    self._refused: list[tuple[Run, Attempt]] = []

  def start(self, runs: Sequence[Run]) -> None:
    """Starts them all at once."""
    for run in runs:
      cpus = self._free.pop()
      try:
        self._running[run] = (Process(run, self._command(run), cpus), cpus)
      except BlockingIOError:
        self._free.append(cpus)
        self._refused.append((run, Attempt(1, 0.0, BUSY)))

  def ended(self) -> list[tuple[Run, Attempt]]:
    """Those whose process has ended."""
    found, self._refused = self._refused, []
    for run, (process, cpus) in list(self._running.items()):
      if attempt := process.poll():
        del self._running[run]
        self._free.append(cpus)
        found.append((run, attempt))
    return found

  def stop(self, signum: int) -> None:
    """Passes the signal on."""
    for process, _ in self._running.values():
      process.send(signum)

  def kill(self) -> None:
    """Ends every process and what it started."""
    for process, _ in self._running.values():
      process.kill()

  def close(self) -> None:
    """Nothing is held."""


def cpu_sets(count: int) -> list[list[int]]:
  """The CPUs that this process may use, in `count` parts of neighbours, as even as they go.

  Raises:
    ConfigError: there are fewer CPUs than parts, or the system has no sets of them.
  """
  if not hasattr(os, "sched_getaffinity"):
    raise ConfigError(f"--cpu_sets: {sys.platform} binds no process to CPUs")
  cpus = sorted(os.sched_getaffinity(0))
  if count > len(cpus):
    raise ConfigError(f"--cpu_sets: {len(cpus)} CPUs are too few for {count} runs at a time")
  ends = [len(cpus) * i // count for i in range(count + 1)]
  return [cpus[start:end] for start, end in zip(ends, ends[1:], strict=False)]
