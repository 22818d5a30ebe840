"""Ctrl-C and SIGTERM as a request to save and leave."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from jax.experimental import multihost_utils


class Interrupted(BaseException):
  """The run was asked to stop; `code` is what the process should exit with (128 + signal).

  Not an Exception, so that code which handles those lets it pass, as with KeyboardInterrupt.
  """

  def __init__(self, signum: int):
    self.code = 128 + signum
    super().__init__(signal.Signals(signum).name)


class Interrupts:
  """While entered, the first SIGINT or SIGTERM raises Interrupted, or waits under `deferred`.

  After the first, the signals act as they do on any process: a second Ctrl-C ends it at once.
  """

  def __init__(self) -> None:
    self._received: int | None = None
    self._deferred = False
    self._before: dict[int, Any] = {}

  def __enter__(self) -> Interrupts:
    for signum in (signal.SIGINT, signal.SIGTERM):
      self._before[signum] = signal.signal(signum, self._receive)
    return self

  def __exit__(self, *_: object) -> None:
    for signum, handler in self._before.items():
      signal.signal(signum, handler)

  @contextlib.contextmanager
  def deferred(self, on: bool = True) -> Iterator[None]:
    """Within, signals wait for `check` (`on=False`, inside a deferring block: they do not)."""
    before, self._deferred = self._deferred, on
    try:
      if not on:
        self._raise()
      yield
    finally:
      self._deferred = before

  def check(self, step: int) -> None:
    """Between steps, after `step` of them: raises Interrupted if a signal has come."""
    del step
    self._raise()

  def _raise(self) -> None:
    if self._received is not None:
      raise Interrupted(self._received)

  def _receive(self, signum: int, frame: FrameType | None) -> None:
    del frame
    self._received = signum
    for each in (signal.SIGINT, signal.SIGTERM):
      signal.signal(each, signal.SIG_DFL)
    if not self._deferred:
      raise Interrupted(signum)
    # Not print: the signal may have come in the middle of one.
    os.write(2, b"\nsaving after this step; Ctrl-C again leaves at once\n")


class SharedInterrupts(Interrupts):
  """The same where several processes make a run: a signal to any stops all, after the same step.

  They agree on the step through JAX's coordination service, which takes SIGTERM itself; Ctrl-C is
  handed on to it. Signals wait for `check`, which every process calls after every step.
  """

  def __enter__(self) -> SharedInterrupts:
    self._before[signal.SIGINT] = signal.signal(
      signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    return self

  def check(self, step: int) -> None:
    """See `Interrupts`."""
    if multihost_utils.reached_preemption_sync_point(step):
      raise Interrupted(signal.SIGTERM)
