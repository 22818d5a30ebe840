"""The model that a step asks: where its files are, and what they hold."""

from __future__ import annotations

import hashlib
from pathlib import Path


def find(source: str) -> Path:
  """Where the files of a model are.

  Args:
    source: a Hugging Face directory, a run's directory with the whole model that the run left, a
      GGUF file, or a name that `research.models` knows.

  Raises:
    ValueError: there is no such name, or the run left an adapter and no model.
    FileNotFoundError, RuntimeError: as `research.models.named.fetch`.
  """
  from research.models import named  # JAX takes a second or two to import.

  path = Path(source)
  if not path.exists():
    return named.fetch(source)
  if any(path.glob("*.safetensors")):
    return path  # whatever else is beside it
  if (path / "model").is_dir():
    return path / "model"
  if (path / "adapter").is_dir():
    raise ValueError(
      f"{source} has an adapter and no whole model; python -m research.export --run={source}"
      " --format=hf --output=DIR makes one"
    )
  return path


def digests(path: Path) -> list[list[str]]:
  """Name and SHA-256 of each file of a model, for JSON."""
  files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
  return [[str(file.relative_to(path)), _digest(file)] for file in files]


def _digest(file: Path) -> str:
  with file.open("rb") as opened:
    return hashlib.file_digest(opened, "sha256").hexdigest()
