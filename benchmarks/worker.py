"""What every worker shares: timing, peak memory and the one line of JSON that it prints.

A worker is one side of one benchmark in its own process, so that neither memory nor threads
nor caches of one side touch the other. It runs in the peer's virtual environment: this file
imports the standard library alone, and of ours what needs no more.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from research.core import memory

DEVICES = ("cpu", "gpu")


def parser(description: str) -> argparse.ArgumentParser:
  """A parser with the arguments that every worker takes."""
  made = argparse.ArgumentParser(description=description)
  made.add_argument("--model", type=Path, required=True, help="directory or GGUF file to load")
  made.add_argument("--warmup", type=int, required=True, help="steps before the clock starts")
  made.add_argument("--steps", type=int, required=True, help="timed steps")
  made.add_argument("--device", choices=DEVICES, default=DEVICES[0], help="what it runs on")
  return made


def time_steps(step: Callable[[], None], *, warmup: int, steps: int) -> list[float]:
  """Seconds of each timed call of `step`, which must return only when its work is done."""
  for _ in range(warmup):
    step()
  seconds = []
  for _ in range(steps):
    started = time.perf_counter()
    step()
    seconds.append(time.perf_counter() - started)
  return seconds


def median_rate(seconds: Sequence[float], tokens: int) -> float:
  """Tokens per second of the median step, where every step has the same `tokens`."""
  return tokens / statistics.median(seconds)


def total_rate(seconds: Sequence[float], tokens: Sequence[int]) -> float:
  """Tokens per second over all steps, where steps differ in size."""
  return sum(tokens) / sum(seconds)


def report(packages: Sequence[str], **measured: Any) -> None:
  """Prints the result: what was measured, peak memory and the versions of `packages`.

  measured: without `peak_bytes`, that is the process's largest resident set.
  """
  versions = {name: importlib.metadata.version(name) for name in packages}
  measured.setdefault("peak_bytes", memory.peak_resident_bytes())
  print(json.dumps({**measured, "versions": versions}), flush=True)
