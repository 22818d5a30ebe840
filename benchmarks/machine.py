"""What the benchmarks ran on: told with every result, because only ratios travel."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

# The instruction sets that decide how fast a CPU multiplies matrices.
_TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
_BUSY_LOAD = 0.3


def describe() -> dict[str, Any]:
  """The kind of machine: CPU model, cores, telling flags, memory in bytes, system, GPUs."""
  blocks = _cpuinfo()
  first = blocks[0] if blocks else {}
  flags = first.get("flags", "").split()
  return {
    "cpu": first.get("model name") or platform.processor() or platform.machine(),
    "family_model": f"{first.get('cpu family', '?')}/{first.get('model', '?')}",
    "cores": cores(),
    "flags": [flag for flag in _TELLING_FLAGS if flag in flags],
    "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    "system": platform.system(),
    "python": platform.python_version(),
    "gpus": _gpus(),
  }


def _gpus() -> list[str]:
  """Names of NVIDIA's GPUs; none where there is no driver."""
  if not shutil.which("nvidia-smi"):
    return []
  command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
  return subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[:-1]


def cores() -> int:
  """Physical cores this process may use; logical ones where the system does not tell."""
  logical = os.cpu_count() or 1
  if not hasattr(os, "sched_getaffinity"):
    return logical
  allowed = os.sched_getaffinity(0)
  physical = {
    (block.get("physical id"), block.get("core id", block["processor"]))
    for block in _cpuinfo()
    if int(block["processor"]) in allowed
  }
  return len(physical) or len(allowed)


def busy() -> str:
  """A warning when other programs are at work, or an empty string."""
  load = os.getloadavg()[0]
  if load < _BUSY_LOAD:
    return ""
  return f"warning: the load average is {load:.1f}; other programs' work distorts every figure"


def _cpuinfo() -> list[dict[str, str]]:
  """The key-value blocks of /proc/cpuinfo, one a logical core; none outside Linux."""
  file = Path("/proc/cpuinfo")
  if not file.exists():
    return []
  blocks = []
  for text in file.read_text().strip().split("\n\n"):
    pairs = (line.partition(":") for line in text.splitlines())
    block = {key.strip(): value.strip() for key, _, value in pairs}
    if "processor" in block:
      blocks.append(block)
  return blocks
