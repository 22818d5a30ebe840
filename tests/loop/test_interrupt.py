"""Signals: at once, or when it suits."""

import os
import signal
import subprocess
import sys

import pytest

from research.loop.interrupt import Interrupted, Interrupts


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_raises_with_its_exit_code(signum, code):
  before = signal.getsignal(signum)
  with pytest.raises(Interrupted) as caught, Interrupts():
    os.kill(os.getpid(), signum)
  assert caught.value.code == code
  assert signal.getsignal(signum) is before


def test_a_deferred_signal_waits_for_the_check():
  reached = []
  with pytest.raises(Interrupted), Interrupts() as interrupts, interrupts.deferred():
    interrupts.check(1)
    os.kill(os.getpid(), signal.SIGTERM)
    reached.append("the end of the step")
    interrupts.check(1)
    reached.append("the next step")
  assert reached == ["the end of the step"]


def test_a_stretch_that_need_not_wait():
  reached = []
  with pytest.raises(Interrupted), Interrupts() as interrupts, interrupts.deferred():
    with interrupts.deferred(False):
      os.kill(os.getpid(), signal.SIGTERM)
    reached.append("never")
  with pytest.raises(Interrupted), Interrupts() as interrupts, interrupts.deferred():
    os.kill(os.getpid(), signal.SIGTERM)
    with interrupts.deferred(False):
      reached.append("never")
  assert not reached


def test_a_second_signal_ends_the_process_at_once():
  script = """
import os, signal
from research.loop.interrupt import Interrupts
with Interrupts() as interrupts, interrupts.deferred():
  os.kill(os.getpid(), signal.SIGINT)
  print("saving", flush=True)
  os.kill(os.getpid(), signal.SIGINT)
  print("too late", flush=True)
"""
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
  assert done.returncode == -signal.SIGINT
  assert done.stdout == "saving\n"
  assert "Ctrl-C again leaves at once" in done.stderr
