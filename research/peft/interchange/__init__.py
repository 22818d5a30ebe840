"""PEFT's own format, both ways: `adapter_config.json` and `adapter_model.safetensors`.

Each method's part of it is a module with `write(adapters, modules) -> (config, tensors)` and
`read(config, tensors, params, modules) -> adapters`, and where PEFT has less of a method than we do
with `obstacle(adapters, modules)`, why adapters of it cannot be written. Bottlenecks, which PEFT
has not, are in AdapterHub's files where that has them. What was trained whole beside adapters, and
trainable tokens, are in `beside`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from research.core import tree
from research.io import safetensors
from research.peft.adalora import AdaLoRA
from research.peft.adapter import sites
from research.peft.bottleneck import Bottleneck
from research.peft.dora import DoRA
from research.peft.embedding import EmbeddingLoRA
from research.peft.ia3 import IA3
from research.peft.interchange import (
  adalora,
  adapterhub,
  beside,
  bottleneck,
  ia3,
  kernels,
  lora,
  prefix,
  prompt,
  vera,
)
from research.peft.interchange.modules import CONFIG, FILE, Modules
from research.peft.lora import LoRA
from research.peft.p_tuning import EncodedPrompt, PromptEncoder
from research.peft.prefix import Offset, Prefix, ProjectedPrefix
from research.peft.prompt import Prompt
from research.peft.vera import VeRA

Tree = Any

FORMATS: dict[str, ModuleType] = {  # by `peft_type`
  "ADALORA": adalora,
  "BOTTLENECK": bottleneck,
  "IA3": ia3,
  "LORA": lora,
  "PREFIX_TUNING": prefix,
  "PROMPT_TUNING": prompt,
  "P_TUNING": prompt,
  "VERA": vera,
}
_TYPES: dict[type, str] = {
  AdaLoRA: "ADALORA",
  Bottleneck: "BOTTLENECK",
  DoRA: "LORA",
  EmbeddingLoRA: "LORA",
  EncodedPrompt: "P_TUNING",
  IA3: "IA3",
  LoRA: "LORA",
  Offset: "PREFIX_TUNING",
  Prefix: "PREFIX_TUNING",
  ProjectedPrefix: "PREFIX_TUNING",
  Prompt: "PROMPT_TUNING",
  PromptEncoder: "P_TUNING",
  VeRA: "VERA",
}
_OBSTACLES: dict[str, Callable[[Tree, Modules], str | None]] = {
  "ADALORA": kernels.unplaced,
  "IA3": ia3.obstacle,
  "LORA": lora.obstacle,
  "VERA": vera.obstacle,
}
_TOKENS = beside.TOKENS  # a kind without adapters at kernels


def obstacle(adapters: Tree, modules: Modules) -> str | None:
  """Why `save` has no files for these adapters, None if it has; one line.

  It depends on sites and methods, not on what was learnt: a run can know it before it begins.
  """
  kinds: dict[str, str] = {}  # peft_type -> a path where it is
  main, others = beside.split(adapters)
  for path, adapter in sites(main):
    if type(adapter) not in _TYPES:
      return f"PEFT's files have no place for the {type(adapter).__name__} at {path!r}"
    kinds[_TYPES[type(adapter)]] = path
  if len(kinds) > 1 or not (kinds or others):
    found = " and ".join(f"{kind} at {path!r}" for kind, path in kinds.items()) or "none"
    return f"PEFT's files hold adapters of one method; these are {found}"
  kind = next(iter(kinds), None)
  if others and (reason := beside.obstacle(others, modules, kind)):
    return reason
  return _OBSTACLES[kind](main, modules) if kind in _OBSTACLES else None


def save(
  directory: str | Path,
  adapters: Tree,
  modules: Modules,
  *,
  base_model: str | None = None,
  task_type: str | None = "CAUSAL_LM",
) -> None:
  """Writes adapters of one method as PEFT does, in float32, and what was trained beside them.

  Args:
    directory: made if need be; the two files in it are replaced.
    adapters: from `attach`, `load` or `with_saved`.
    modules: `research.models.families` tells it for a model.
    base_model: what to write as `base_model_name_or_path`.
    task_type: by which PEFT chooses a class of model, None for its plain one.

  Raises:
    ValueError: PEFT has no such method or not this mixture, or a site is no module of the
      checkpoint.
  """
  if reason := obstacle(adapters, modules):
    raise ValueError(reason)
  main, others = beside.split(jax.device_get(adapters))
  kind = next((_TYPES[type(adapter)] for _, adapter in sites(main)), _TOKENS)
  if kind == "BOTTLENECK" and adapterhub.has_place(main, modules):
    file = adapterhub.FILE
    config, tensors = adapterhub.write(main, modules)
  else:
    file = FILE
    config, tensors = FORMATS[kind].write(main, modules) if main else ({}, {})
    more, others_tensors = beside.write(others, modules, alone=not main)
    config, tensors = config | more, tensors | others_tensors
    config |= {
      "peft_type": kind,
      "task_type": task_type,
      "base_model_name_or_path": base_model,
      "inference_mode": True,
    }
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  safetensors.write(directory / file, tensors, {"format": "pt"})
  text = json.dumps(config, indent=2, sort_keys=True) + "\n"
  (directory / CONFIG).write_text(text)


def load(directory: str | Path, params: Tree, modules: Modules) -> Tree:
  """Reads an adapter that PEFT or `save` wrote, for the base `params`.

  Parameters that were trained whole are `Saved` nodes, which `install` puts in their place.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: the config asks for what we cannot honour, or a tensor has no place in
      `params` or does not fit.
  """
  directory = Path(directory)
  file = directory / CONFIG
  if not file.exists():
    raise FileNotFoundError(f"{directory} holds no {CONFIG}")
  config = json.loads(file.read_text())
  if adapterhub.is_one(config):
    tensors = dict(safetensors.read(directory / adapterhub.FILE))
    return adapterhub.read(config, tensors, params, modules)
  kind = config.get("peft_type")
  if kind not in (*FORMATS, _TOKENS):
    raise ValueError(
      f"peft_type {kind!r} is not supported{tree.nearest(str(kind), FORMATS)}; there are"
      f" {', '.join((*FORMATS, _TOKENS))}"
    )
  tensors = dict(safetensors.read(directory / FILE))
  others: Tree = {}
  if kind in beside.KINDS:
    config, tensors, others = beside.take(config, tensors, params, modules)
  if kind == _TOKENS:
    kernels.require_empty(tensors, "trainable tokens'")
    return others
  main = FORMATS[kind].read(config, tensors, params, modules)
  return tree.unflatten({**dict(sites(main)), **dict(sites(others))})
