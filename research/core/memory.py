"""The most memory that this process has had."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import jax


def peak_bytes() -> int:
  """Of the first accelerator where there is one, else the process's largest resident set.

  Linux's `VmHWM` counts this program alone; `ru_maxrss`, the fallback elsewhere, starts at the
  size of the parent.
  """
  stats = jax.devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"]
  status = Path("/proc/self/status")
  if status.exists():
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024
