"""What a run ran on and with: saved beside its config, so that its numbers can be traced."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from research.io.checkpoint import write_json

_PACKAGES = (
  "flax",
  "grain",
  "jax",
  "jaxlib",
  "ml_collections",
  "numpy",
  "optax",
  "orbax-checkpoint",
  "safetensors",
  "tensorflow-datasets",
  "tokenizers",
)


def append(file: Path, first_step: int) -> None:
  """Adds this process to the list in `file`: a run may go on elsewhere, with other versions."""
  starts = json.loads(file.read_text()) if file.exists() else []
  write_json(file, [*starts, {"first_step": first_step, **describe()}])


def describe() -> dict[str, Any]:
  """Versions, git revision (None outside a repository) and the kind of machine."""
  return {
    "python": platform.python_version(),
    "packages": {name: _version(name) for name in _PACKAGES},
    "git": _git(Path(__file__).parent),
    "machine": {
      "system": platform.system(),
      "architecture": platform.machine(),
      "device": jax.devices()[0].device_kind,
      "devices": jax.device_count(),
      "processes": jax.process_count(),
    },
    "command": sys.argv,
  }


def _version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def _git(directory: Path) -> dict[str, Any] | None:
  """The revision, and whether tracked files differ from it."""
  try:
    revision = _output("git", "-C", str(directory), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(directory), "status", "--porcelain", "-uno")
  except (OSError, subprocess.CalledProcessError):
    return None
  return {"revision": revision, "dirty": bool(changes)}


def _output(*command: str) -> str:
  return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
