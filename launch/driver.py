"""From a list of runs to their ends: starts them, tries again, tells of them, passes signals on."""

from __future__ import annotations

import collections
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Protocol

from launch import process, runs
from launch.engines import Engine
from launch.runs import Attempt, Run

_NEWS_SECONDS = 60.0  # between two tables of what is running, where nothing ends
_TICK_SECONDS = 0.05
_CANNOT_BE = 2  # the exit code of a config that cannot be: to try again would change nothing


class Source(Protocol):
  """Runs that follow from the results of others: a search."""

  def take(self) -> list[Run]:
    """More runs; empty where it has none before some of its others have ended."""

  def ended(self, run: Run) -> None:
    """Is told of each of its runs that was complete before, is now, or has failed for good."""


class Driver:
  """One sweep on one engine.

  Args:
    engine: where.
    tries: how often a run is tried that fails.
    total: runs of the sweep, those that are complete included.
    metrics: what is told of a run that is complete.
    say: prints a line.
  """

  def __init__(
    self,
    engine: Engine,
    *,
    tries: int,
    total: int,
    metrics: Sequence[str],
    say: Callable[[str], None],
  ):
    self._engine = engine
    self._tries = tries
    self._total = total
    self._metrics = metrics
    self._say = say
    self._done = 0
    self._failed = 0
    self._tried: collections.Counter[Run] = collections.Counter()
    self._waiting: collections.deque[Run] = collections.deque()
    self._running: dict[Run, float] = {}  # when each was started
    self._signals: list[int] = []

  def drive(self, listed: Sequence[Run], source: Source | None = None) -> int:
    """Runs what is not complete, and then what `source` has, to the end.

    Returns:
      0 if all runs are complete, 1 if some failed, 128 + the signal where one ended it.
    """
    before = {each: signal.signal(each, self._receive) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
      self._take(listed, source)
      self._loop(source)
    finally:
      for each, handler in before.items():
        signal.signal(each, handler)
      if self._running:  # something here went wrong: nothing is to run on unheeded
        self._engine.stop(signal.SIGTERM)
      self._engine.close()
    if self._signals:
      self._say("stopped; the same command goes on from there")
      return 128 + self._signals[0]
    return 1 if self._failed else 0

  def _loop(self, source: Source | None) -> None:
    asked = news = time.monotonic()
    heard = 0
    while True:
      if heard < len(self._signals):
        self._stop(again=heard > 0)
        heard += 1
      if not self._signals:
        # Of what was complete before, a source has more at once.
        while source and (more := source.take()):
          self._take(more, source)
        self._start()
      if not self._running and (self._signals or not self._waiting):
        return
      now = time.monotonic()
      if now - asked >= self._engine.poll_seconds:
        asked = now
        ended = self._engine.ended()
        for run, attempt in ended:
          self._end(run, attempt, source)
        if (ended and self._running) or now - news >= _NEWS_SECONDS:
          news = now
          self._tell_running()
      time.sleep(_TICK_SECONDS)

  def _take(self, more: Sequence[Run], source: Source | None) -> None:
    for run in more:
      if runs.state(run) == runs.COMPLETE:
        self._done += 1
        if source:
          source.ended(run)
      else:
        self._waiting.append(run)

  def _start(self) -> None:
    room = self._engine.at_once
    free = len(self._waiting) if room is None else max(0, room - len(self._running))
    now = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
    if now:
      self._running.update(dict.fromkeys(now, time.monotonic()))
      self._engine.start(now)

  def _end(self, run: Run, attempt: Attempt, source: Source | None) -> None:
    del self._running[run]
    if attempt.code == 0 and runs.state(run) != runs.COMPLETE:
      attempt = Attempt(
        1, attempt.seconds, "it ended as if all were well, with no results.json here"
      )
    took = f"{run.name} after {attempt.seconds:.0f} s"
    if attempt.code == 0:
      runs.record(run, attempt)
      self._done += 1
      self._say(f"{self._count()} complete  {took}{self._figures(run)}")
    elif self._signals and (attempt.code < 0 or attempt.code in runs.INTERRUPTED):
      runs.record(run, Attempt(128 + self._signals[0], attempt.seconds, ""))
      self._say(f"{self._count()} stopped   {took}")
      return
    else:
      runs.record(run, attempt)
      self._tried[run] += 1
      told = f"{took}: {attempt.error}; see {process.log(run)}"
      again = self._tried[run] < self._tries and attempt.code != _CANNOT_BE
      if again and not self._signals:
        self._say(f"{self._count()} failed    {told}; trying again")
        self._waiting.append(run)
        return
      self._done += 1
      self._failed += 1
      self._say(f"{self._count()} failed    {told}")
    if source:
      source.ended(run)

  def _count(self) -> str:
    return f"[{self._done:{len(str(self._total))}d}/{self._total}]"

  def _figures(self, run: Run) -> str:
    found = runs.figures(run)
    told = [
      f"{name} {found[name]:.4g}" if name in found else f"no {name}" for name in self._metrics
    ]
    return ": " + ", ".join(told)

  def _tell_running(self) -> None:
    running = [run for run in self._running if runs.state(run) == runs.RUNNING]
    width = max((len(run.name) for run in running), default=0)
    for run in running:
      seconds = time.monotonic() - self._running[run]
      self._say(f"  running {run.name:{width}}  step {runs.step(run):5d}  {seconds:6.0f} s")
    if more := len(self._running) - len(running):
      self._say(f"  {more} queued, or not seen from here")

  def _stop(self, again: bool) -> None:
    if again:
      self._engine.kill()
    else:
      told = "; again leaves at once" if self._running else ""
      self._say(f"stopping {len(self._running)} runs, which save first{told}")
      self._engine.stop(self._signals[0])

  def _receive(self, signum: int, frame: FrameType | None) -> None:
    del frame
    self._signals.append(signum)
