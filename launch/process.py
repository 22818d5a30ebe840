"""A run's process on this machine: its log, its lock, its signals, and the error it ended by."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch import runs
from launch.runs import Attempt, Run

_TICK_SECONDS = 0.1
_TAIL = 65_536  # bytes at the end of a log in which the error is looked for
# A line that names an error, as Python and our commands write it.
_ERROR = re.compile(r"(error:|[\w.]*(Error|Exception|Interrupt)\b)")
BUSY = "another process is running it"


class Process:
  """A run that was started; both outputs are appended to `log.txt` in its directory.

  It is in a session of its own, so that signals of the terminal reach it through `send` alone.
  """

  def __init__(self, run: Run, command: Sequence[str], cpus: Sequence[int] = ()):
    """Starts `command`, on these CPUs only where some are named.

    Raises:
      BlockingIOError: another process is running it.
    """
    self._began = time.monotonic()
    self._run = run
    held = runs.lock(run.directory)
    if held is None:
      raise BlockingIOError(BUSY)
    before = os.sched_getaffinity(0) if cpus else set()
    try:
      with log(run).open("ab") as output:
        self._offset = output.tell()
        # A process begins with the CPUs of the thread that starts it.
        if cpus:
          os.sched_setaffinity(0, cpus)
        self._process = subprocess.Popen(
          command,
          stdin=subprocess.DEVNULL,
          stdout=output,
          stderr=subprocess.STDOUT,
          start_new_session=True,
          pass_fds=(held,),
        )
    finally:
      os.close(held)
      if cpus:
        os.sched_setaffinity(0, before)

  def poll(self) -> Attempt | None:
    """How it ended; None while it runs."""
    code = self._process.poll()
    return None if code is None else self._attempt(code)

  def wait(self) -> Attempt:
    """How it ended, once it has."""
    # Not by `Popen.wait`, whose lock would keep a signal handler here from sending anything.
    while (ended := self.poll()) is None:
      time.sleep(_TICK_SECONDS)
    return ended

  def send(self, signum: int) -> None:
    """Passes a signal on to the process itself, which may have some of its own to end."""
    self._process.send_signal(signum)

  def kill(self) -> None:
    """Ends it and all that it started, at once."""
    if self._process.poll() is None:
      os.killpg(self._process.pid, signal.SIGKILL)

  def _attempt(self, code: int) -> Attempt:
    seconds = time.monotonic() - self._began
    return Attempt(code, seconds, "" if code == 0 else _error(code, log(self._run), self._offset))


def log(run: Run) -> Path:
  """The file of all that its processes have written."""
  return run.directory / runs.LOG


def _error(code: int, file: Path, offset: int) -> str:
  """What the log says last of an error since `offset`, or its last line."""
  with file.open("rb") as lines:
    lines.seek(max(offset, file.stat().st_size - _TAIL))
    text = lines.read().decode(errors="replace")
  found = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
  if code < 0:
    said = f"killed by {signal.Signals(-code).name}"
    # What the kernel does where memory is short.
    return said + " (out of memory?)" if code == -signal.SIGKILL else said
  errors = [line for line in found if _ERROR.match(line)]
  return [f"exit code {code}", *found[-1:], *errors[-1:]][-1]


def run_to_end(
  run: Run,
  command: Sequence[str],
  directory: str,
  on_start: Callable[[Process], None] = lambda process: None,
) -> Attempt:
  """Runs it to its end in this process, somewhere on a cluster.

  An exception that comes meanwhile, as where the task is cancelled, is passed on once the run has
  saved and left.

  Args:
    run, command: what.
    directory: that all paths are relative to.
    on_start: is given the process.
  """
  os.chdir(directory)
  if runs.state(run) == runs.COMPLETE:  # by a job that was queued earlier
    return Attempt(0, 0.0, "")
  try:
    process = Process(run, command)
  except BlockingIOError as error:
    return Attempt(1, 0.0, str(error))
  try:
    on_start(process)
    return process.wait()
  except BaseException:
    process.send(signal.SIGTERM)
    process.wait()
    raise
