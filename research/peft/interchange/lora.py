"""LoRA as PEFT writes it.

Where a checkpoint fuses projections that we keep apart (GPT-2's `c_attn`), PEFT holds one
adapter for the fused module. Reading gives each part the shared `lora_A` and its rows of
`lora_B`; writing stacks the parts' factors block-diagonally, which multiplies the rank,
unless the parts still share one `lora_A`.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import tree
from research.peft.adapter import sites
from research.peft.interchange.modules import PREFIX, Modules, Part
from research.peft.lora import LoRA

Tree = Any
# Keys that change what the adapter computes and the values with which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "alora_invocation_tokens": (None,),
  "arrow_config": (None,),
  "bias": ("none",),
  "layer_replication": (None,),
  "lora_bias": (False, None),
  "modules_to_save": (None, []),
  "target_parameters": (None, []),
  "trainable_token_indices": (None,),
  "use_dora": (False, None),
  "use_qalora": (False, None),
}


def write(adapters: Tree, modules: Modules) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The config's keys and the tensors of LoRA adapters, in float32.

  Raises:
    ValueError: an adapter is no LoRA, or its site is no module of the checkpoint.
  """
  grouped: dict[str, dict[Part, LoRA]] = {}
  for path, adapter in sites(jax.device_get(adapters)):
    if path not in modules:
      raise ValueError(f"PEFT knows no module for {path!r}{tree.nearest(path, modules)}")
    if not isinstance(adapter, LoRA):
      raise ValueError(f"{path!r} holds a {type(adapter).__name__}, not a LoRA")
    module, part = modules[path]
    grouped.setdefault(module, {})[part] = adapter

  tensors: dict[str, np.ndarray] = {}
  shapes: dict[str, tuple[int, float]] = {}  # module with its layer -> rank, alpha
  for module, group in grouped.items():
    for layer in range(_layers(next(iter(group.values())))):
      a, b, scale = _fuse({part: _factors(group[part], layer) for part in sorted(group)})
      if not len(a):
        continue
      name = module.format(layer)
      tensors[f"{PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(a)
      tensors[f"{PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(b)
      shapes[name] = (len(a), float(f"{scale * len(a):.7g}"))
  return _config(shapes, modules, grouped), tensors


def read(
  config: Mapping[str, Any], tensors: dict[str, np.ndarray], params: Tree, modules: Modules
) -> Tree:
  """The LoRA adapters of a config and its tensors, for the base `params`.

  Raises:
    ValueError: the config asks for what we cannot honour, or a tensor has no place in `params` or
      does not fit.
  """
  _check(config)
  kernels = tree.flatten(params)
  by_module: dict[str, list[tuple[str, int, Part]]] = {}
  for path, (module, part) in modules.items():
    if path in kernels:
      stack = kernels[path].shape[:-2]
      for layer in range(stack[0] if stack else 1):
        by_module.setdefault(module.format(layer), []).append((path, layer, part))

  found: dict[str, dict[int, tuple[np.ndarray, np.ndarray, float]]] = {}
  tensors = dict(tensors)
  names = sorted(name for name in tensors if name.endswith(".lora_A.weight"))
  for name in names:
    module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
    if module not in by_module:
      raise ValueError(
        f"the adapter has {module!r}, the model does not{tree.nearest(module, by_module)}"
      )
    a = np.asarray(tensors.pop(name), np.float32).T  # [in, r]
    b = np.asarray(tensors.pop(name.replace("lora_A", "lora_B")), np.float32).T  # [r, out]
    scale = _scale(config, module, a.shape[1])
    for path, layer, (start, stop, total) in by_module[module]:
      unit = b.shape[-1] // total
      piece = b[:, start * unit : stop * unit]
      kernel = kernels[path].shape
      if (a.shape[0], piece.shape[1]) != kernel[-2:]:
        raise ValueError(f"{module}: {a.shape} x {b.shape} does not fit {path} {kernel}")
      found.setdefault(path, {})[layer] = (a, piece, scale)
  if tensors:
    raise ValueError(f"tensors that are no LoRA factors: {', '.join(sorted(tensors)[:6])}")
  dropout = float(config.get("lora_dropout") or 0.0)
  return tree.unflatten(
    {path: _stack(layers, kernels[path].shape, dropout) for path, layers in found.items()}
  )


def _layers(adapter: LoRA) -> int:
  return len(adapter.ranks)


def _factors(adapter: LoRA, layer: int):
  """`A [r, in]`, `B [out, r]` and the scale of one layer, in PEFT's orientation."""
  stacked = adapter.a.ndim == 3
  a, b, scale = (
    np.asarray(v[layer] if stacked else v, np.float32)
    for v in (adapter.a, adapter.b, adapter.scale)
  )
  rank = adapter.ranks[layer]
  return a[:, :rank].T, b[:rank].T, float(scale)


def _fuse(factors):
  """One `(A, B, scale)` for a module of which each of `factors` holds a part, its key."""
  held = list(factors.values())
  start, stop, total = next(iter(factors))
  if stop - start == total:
    return held[0]
  scale = next((f[2] for f in held if len(f[0])), 1.0)
  unit = held[0][1].shape[0] // (stop - start)
  whole = sum(stop - start for start, stop, _ in factors) == total
  shared = whole and all(np.array_equal(f[0], held[0][0]) and f[2] == held[0][2] for f in held)
  if shared:
    return held[0][0], np.concatenate([f[1] for f in held]), scale
  rank = sum(len(f[0]) for f in held)
  b = np.zeros((unit * total, rank), np.float32)
  column = 0
  for (start, stop, _), f in factors.items():
    after = column + len(f[0])
    b[start * unit : stop * unit, column:after] = f[1] * (f[2] / scale)
    column = after
  return np.concatenate([f[0] for f in held]), b, scale


def _config(shapes, modules, grouped):
  common = Counter(shapes.values()).most_common(1)[0][0]
  rank_pattern = {name: rank for name, (rank, _) in shapes.items() if rank != common[0]}
  alpha_pattern = {name: alpha for name, (_, alpha) in shapes.items() if alpha != common[1]}
  return {
    "r": common[0],
    "lora_alpha": int(common[1]) if common[1].is_integer() else common[1],
    "rank_pattern": rank_pattern,
    "alpha_pattern": alpha_pattern,
    "target_modules": _targets(shapes, modules, grouped),
    "lora_dropout": max(a.dropout for group in grouped.values() for a in group.values()),
    "fan_in_fan_out": any(".c_attn" in m or ".c_fc" in m or ".c_proj" in m for m in grouped),
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "init_lora_weights": True,
    "modules_to_save": None,
    "layers_to_transform": None,
    "layers_pattern": None,
  }


def _targets(shapes, modules, grouped):
  """The shortest names that match exactly the modules in `shapes`."""
  every = {module for module, _ in modules.values()}
  targets = []
  for module in grouped:
    layers = _layers(next(iter(grouped[module].values())))
    names = [module.format(i) for i in range(layers)]
    tail = module.rsplit("{}.", 1)[-1]
    short = tail.rsplit(".", 1)[-1]
    if not all(name in shapes for name in names):
      targets += [name for name in names if name in shapes]
    elif sum(other.endswith(f".{short}") or other == short for other in every) == 1:
      targets.append(short)
    else:
      targets.append(tail)
  return sorted(targets)


def _check(config):
  for key, neutral in _NEUTRAL.items():
    if key in config and config[key] not in neutral:
      raise ValueError(f"adapter_config.json: {key}={config[key]!r} cannot be honoured")
  init = config.get("init_lora_weights", True)
  if isinstance(init, str) and init.startswith(("pissa", "olora", "corda", "loftq")):
    raise ValueError(
      f"init_lora_weights={init!r} changes the base model; convert the adapter to plain LoRA"
      " with PEFT's path_initial_model_for_weight_conversion first"
    )


def _scale(config, module, rank):
  alpha = config.get("lora_alpha", 8)
  for pattern, value in (config.get("alpha_pattern") or {}).items():
    if re.match(rf"(.*\.)?({pattern})$", module):
      alpha = value
      break
  return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _stack(layers, shape, dropout):
  """A LoRA for a kernel of `shape` from `layer -> (a [in, r], b [r, out], scale)`."""
  stack = shape[:-2]
  count = stack[0] if stack else 1
  width = max(a.shape[1] for a, _, _ in layers.values())
  a = np.zeros((count, shape[-2], width), np.float32)
  b = np.zeros((count, width, shape[-1]), np.float32)
  scale = np.zeros((count,), np.float32)
  ranks = [0] * count
  for layer, (low, high, factor) in layers.items():
    ranks[layer] = low.shape[1]
    a[layer, :, : ranks[layer]], b[layer, : ranks[layer]], scale[layer] = low, high, factor
  if not stack:
    a, b, scale = a[0], b[0], scale[0]
  return LoRA(jnp.asarray(a), jnp.asarray(b), jnp.asarray(scale), tuple(ranks), dropout)
