"""The peers' virtual environments and the model as they read it, both made at first use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks import machine

_REQUIREMENTS = Path(__file__).parent / "peers"
ROOT = Path(__file__).parent.parent


def python_of(name: str, cache: Path) -> Path:
  """The interpreter of the peer environment `name`, installed from `peers/NAME.txt`.

  A copy of the requirements inside the environment tells that it is complete and current.

  Raises:
    RuntimeError: pip failed.
  """
  requirements = _REQUIREMENTS / f"{name}.txt"
  directory = cache / "peers" / name
  python = directory / "bin" / "python"
  installed = directory / requirements.name
  if installed.exists() and installed.read_text() == requirements.read_text():
    return python
  print(f"installing the peer environment {name} into {directory}", file=sys.stderr)
  if not python.exists():
    venv.create(directory, with_pip=True)
  command = [python, "-m", "pip", "install", "--requirement", requirements]
  # pip's output is the progress; it goes to stderr so that stdout holds the results alone.
  done = subprocess.run(command, stdout=sys.stderr)
  if done.returncode:
    raise RuntimeError(f"pip could not install {requirements} into {directory}; see above")
  shutil.copy(requirements, installed)
  return python


def hugging_face(gguf: Path, dtype: str, cache: Path) -> Path:
  """The directory of a GGUF file's model in `dtype`, converted once by transformers."""
  directory = cache / "models" / f"{gguf.stem}-{gguf.stat().st_size}-{dtype}"
  if directory.exists():
    return directory
  print(f"converting {gguf.name} to a Hugging Face directory in {dtype}", file=sys.stderr)
  # Renamed when it is whole, so that what an interrupt leaves is not taken for a model.
  partial = directory.with_suffix(".partial")
  shutil.rmtree(partial, ignore_errors=True)
  python = python_of("torch", cache)
  command = [python, "-m", "benchmarks.peers.convert", gguf.absolute(), partial, "--dtype", dtype]
  done = subprocess.run(command, cwd=ROOT, env=variables())
  if done.returncode:
    raise RuntimeError(f"transformers could not convert {gguf}; see above")
  partial.rename(directory)
  return directory


def variables(device: str = "cpu") -> dict[str, str]:
  """The environment of every worker: as many threads as cores, one kind of device, no network."""
  threads = str(machine.cores())
  hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
  return os.environ | {
    "OMP_NUM_THREADS": threads,
    "MKL_NUM_THREADS": threads,
    **hidden,
    "JAX_PLATFORMS": {"cpu": "cpu", "gpu": "cuda"}[device],
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
  }
