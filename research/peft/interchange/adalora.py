"""AdaLoRA as PEFT writes it: `lora_A [r, in]`, `lora_E [r, 1]` and `lora_B [out, r]` a module.

A module keeps the ranks that were not taken away, and the config's `rank_pattern` tells them of
`init_r`, by which PEFT scales. Where a checkpoint fuses projections, reading and writing are as
LoRA's, which `e` goes through as a column of `A`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from research.core import matrix, tree
from research.peft.adalora import AdaLoRA, Budget, alpha_of, scale_of
from research.peft.adapter import sites
from research.peft.interchange import kernels, lora
from research.peft.interchange.modules import PREFIX, Modules

Tree = Any
_A, _E, _B = "lora_A", "lora_E", "lora_B"


def write(adapters: Tree, modules: Modules) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The config's keys and the tensors of AdaLoRA adapters, in float32."""
  found: dict[str, Any] = dict(sites(adapters))
  # Before training all of `e` is zero, and no rank has been taken away.
  new = not any(np.any(adapter.e) for adapter in found.values())
  grouped: dict[str, Any] = kernels.grouped(adapters, modules)
  common = next(float(v) for adapter in found.values() for v in np.ravel(adapter.scale) if v)
  tensors: dict[str, np.ndarray] = {}
  ranks: dict[str, int] = {}  # module, with its layer -> rank
  held: dict[str, list[bool]] = {}
  for module, group in grouped.items():
    held[module] = []
    for layer in range(_layers(next(iter(group.values())))):
      each = {part: _factors(adapter, layer, common, new) for part, adapter in group.items()}
      held[module].append(any(factors is not None for factors in each.values()))
      if not held[module][-1]:
        continue
      both, b, _ = lora.fuse({part: f for part, f in each.items() if f is not None})
      name = module.format(layer)
      ranks[name] = len(both)
      for suffix, tensor in ((_A, both[:, :-1]), (_E, both[:, -1:]), (_B, b)):
        tensors[f"{PREFIX}{name}.{suffix}"] = np.ascontiguousarray(tensor)
  init_r = max([*ranks.values(), *(adapter.e.shape[-1] for adapter in found.values())])
  cut = {name: rank for name, rank in ranks.items() if rank < init_r}
  one = next(iter(found.values()))
  config = {
    **dataclasses.asdict(one.budget),
    "init_r": init_r,
    "lora_alpha": _alpha(common, init_r),
    # Of a run that is over; the least that PEFT takes.
    "total_step": one.budget.tinit + one.budget.tfinal + 1,
    "rank_pattern": {
      f"{name}.{_E}": [i < ranks[name] for i in range(init_r)] for name in (ranks if cut else ())
    }
    or None,
    **kernels.settings(held, grouped, modules),
    "lora_dropout": max(adapter.dropout for adapter in found.values()),
    "init_lora_weights": True,
  }
  return config, tensors


def read(
  config: Mapping[str, Any], tensors: dict[str, np.ndarray], params: Tree, modules: Modules
) -> Tree:
  """The AdaLoRA adapters of a config and its tensors, for the base `params`.

  Raises:
    ValueError: the config asks for what we cannot honour, or a tensor has no place in `params` or
      does not fit.
  """
  kernels.require_neutral(config, lora.NEUTRAL)
  flat = matrix.flatten(params)
  places = kernels.places(params, modules)
  tensors = dict(tensors)
  held = {suffix: kernels.take(tensors, suffix, places) for suffix in (_A, _E, _B)}
  kernels.require_together(held)
  kernels.require_empty(tensors, "AdaLoRA")
  found: dict[str, dict[int, tuple[np.ndarray, ...]]] = {}
  for module, low in held[_A].items():
    a, e = low.T, held[_E][module].reshape(-1)  # [in, r], [r]
    for path, layer, part in places[module]:
      b = kernels.piece(held[_B][module].T, part)  # [r, out]
      if (a.shape[0], b.shape[1]) != flat[path].shape[-2:] or not a.shape[1] == len(e) == len(b):
        raise ValueError(f"{module}: {a.shape} x {b.shape} does not fit {path} {flat[path].shape}")
      found.setdefault(path, {})[layer] = (a, e, b)
  alpha, init_r = config.get("lora_alpha", 8), config.get("init_r", 12)
  scale = scale_of(alpha if alpha > 0 else init_r, init_r)
  names = (field.name for field in dataclasses.fields(Budget))
  budget = Budget(**{name: config[name] for name in names if name in config})
  dropout = float(config.get("lora_dropout") or 0.0)
  return tree.unflatten(
    {
      path: _stack(layers, flat[path].shape, scale, budget, dropout)
      for path, layers in found.items()
    }
  )


def _layers(adapter: AdaLoRA) -> int:
  return int(np.size(adapter.scale))


def _factors(adapter: AdaLoRA, layer: int, common: float, new: bool):
  """`[A, e] [r, in + 1]`, `B [out, r]` and 1 of one layer; None if it has no adapter.

  `e` is with the scale's ratio to the `common` one.
  """
  a, e, b, scale = (
    kernels.layer_of(leaf, np.ndim(adapter.scale), layer)
    for leaf in (adapter.a, adapter.e, adapter.b, adapter.scale)
  )
  if not scale:
    return None
  live = np.ones(len(e), bool) if new else e != 0
  e = e[live] * (1.0 if scale == np.float32(common) else scale / common)
  return np.concatenate([a.T[live], e[:, None]], axis=1), b.T[:, live], 1.0


def _alpha(scale: float, init_r: int) -> float | int:
  value = kernels.shortest(alpha_of(scale, init_r), lambda alpha: scale_of(alpha, init_r))
  return int(value) if value.is_integer() else value


def _stack(layers, shape, scale, budget, dropout):
  """An AdaLoRA for a kernel of `shape` from `layer -> (a [in, r], e [r], b [r, out])`."""
  *stack, features, out = shape
  count = stack[0] if stack else 1
  width = max([1, *(len(e) for _, e, _ in layers.values())])
  a = np.zeros((count, features, width), np.float32)
  e = np.zeros((count, width), np.float32)
  b = np.zeros((count, width, out), np.float32)
  scales = np.zeros(count, np.float32)
  for layer, (low, values, high) in layers.items():
    rank = len(values)
    a[layer, :, :rank], e[layer, :rank], b[layer, :rank] = low, values, high
    scales[layer] = scale
  if not stack:
    a, e, b, scales = a[0], e[0], b[0], scales[0]
  return AdaLoRA(*map(jnp.asarray, (a, e, b, scales)), budget, dropout)
