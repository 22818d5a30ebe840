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
  if (told := _told("VmHWM")) is not None:
    return told
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
  """The process's resident set now; elsewhere than on Linux, its largest so far."""
  told = _told("VmRSS")
  return peak_resident_bytes() if told is None else told


def reset_peak() -> None:
  """Makes `peak_resident_bytes` count from now on, where the system can (proc(5), clear_refs)."""
  file = Path("/proc/self/clear_refs")
  if file.exists():
    file.write_text("5")


def _told(name: str) -> int | None:
  """What Linux tells of this process, in bytes."""
  status = Path("/proc/self/status")
  if not status.exists():
    return None
  line = next(line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
  return int(line.split()[1]) * 1024
