"""PEFT's own format, both ways: `adapter_config.json` and `adapter_model.safetensors`.

Each method's part of it is a module with `write(adapters, modules) -> (config, tensors)` and
`read(config, tensors, params, modules) -> adapters`, and where PEFT has less of a method than we do
with `obstacle(adapters, modules)`, why adapters of it cannot be written.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from research.core import tree
from research.io import safetensors
from research.peft.adapter import sites
from research.peft.dora import DoRA
from research.peft.embedding import EmbeddingLoRA
from research.peft.ia3 import IA3
from research.peft.interchange import ia3, lora, vera
from research.peft.interchange.modules import Modules
from research.peft.lora import LoRA
from research.peft.vera import VeRA

Tree = Any

FORMATS: dict[str, ModuleType] = {"IA3": ia3, "LORA": lora, "VERA": vera}  # by `peft_type`
_TYPES: dict[type, str] = {
  DoRA: "LORA",
  EmbeddingLoRA: "LORA",
  IA3: "IA3",
  LoRA: "LORA",
  VeRA: "VERA",
}
_OBSTACLES: dict[str, Callable[[Tree, Modules], str | None]] = {
  "IA3": ia3.obstacle,
  "LORA": lora.obstacle,
  "VERA": vera.obstacle,
}


def obstacle(adapters: Tree, modules: Modules) -> str | None:
  """Why PEFT's files have no place for these adapters, None if they have; one line.

  It depends on sites and methods, not on what was learnt: a run can know it before it begins.
  """
  kinds: dict[str, str] = {}  # peft_type -> a path where it is
  for path, adapter in sites(adapters):
    if type(adapter) not in _TYPES:
      return f"PEFT's files have no place for the {type(adapter).__name__} at {path!r}"
    kinds[_TYPES[type(adapter)]] = path
  if len(kinds) != 1:
    found = " and ".join(f"{kind} at {path!r}" for kind, path in kinds.items()) or "none"
    return f"PEFT's files hold adapters of one method; these are {found}"
  (kind,) = kinds
  return _OBSTACLES[kind](adapters, modules) if kind in _OBSTACLES else None


def save(
  directory: str | Path,
  adapters: Tree,
  modules: Modules,
  *,
  base_model: str | None = None,
  task_type: str | None = "CAUSAL_LM",
) -> None:
  """Writes adapters of one method as PEFT does, in float32.

  Args:
    directory: made if need be; the two files in it are replaced.
    adapters: from `attach` or `load`.
    modules: `research.models.families` tells it for a model.
    base_model: what to write as `base_model_name_or_path`.
    task_type: by which PEFT chooses a class of model, None for its plain one.

  Raises:
    ValueError: PEFT has no such method or not this mixture, or a site is no module of the
      checkpoint.
  """
  if reason := obstacle(adapters, modules):
    raise ValueError(reason)
  kind = _TYPES[type(next(adapter for _, adapter in sites(adapters)))]
  config, tensors = FORMATS[kind].write(jax.device_get(adapters), modules)
  config |= {
    "peft_type": kind,
    "task_type": task_type,
    "base_model_name_or_path": base_model,
    "inference_mode": True,
  }
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  safetensors.write(directory / "adapter_model.safetensors", tensors, {"format": "pt"})
  text = json.dumps(config, indent=2, sort_keys=True) + "\n"
  (directory / "adapter_config.json").write_text(text)


def load(directory: str | Path, params: Tree, modules: Modules) -> Tree:
  """Reads an adapter that PEFT or `save` wrote, for the base `params`.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: the config asks for what we cannot honour, or a tensor has no place in
      `params` or does not fit.
  """
  directory = Path(directory)
  file = directory / "adapter_config.json"
  if not file.exists():
    raise FileNotFoundError(f"{directory} holds no adapter_config.json")
  config = json.loads(file.read_text())
  kind = config.get("peft_type")
  if kind not in FORMATS:
    raise ValueError(
      f"peft_type {kind!r} is not supported{tree.nearest(str(kind), FORMATS)}; there are"
      f" {', '.join(FORMATS)}"
    )
  tensors = dict(safetensors.read(directory / "adapter_model.safetensors"))
  return FORMATS[kind].read(config, tensors, params, modules)
