"""The most memory that this process has had; needs JAX only for an accelerator's."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
  """Of the first accelerator where there is one, else `peak_resident_bytes`."""
  import jax

  stats = jax.devices()[0].memory_stats() or {}
  return stats.get("peak_bytes_in_use") or peak_resident_bytes()


def peak_resident_bytes() -> int:
  """The process's largest resident set.

  Linux's `VmHWM` counts this program alone; `ru_maxrss`, the fallback elsewhere, starts at the
  size of the parent.
  """
  status = Path("/proc/self/status")
  if status.exists():
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024
