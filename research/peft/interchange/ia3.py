"""IA3 as PEFT writes it: a vector `ia3_l` a module, of outputs `[out, 1]` or of inputs `[1, in]`.

Where a checkpoint fuses projections (GPT-2's `c_attn`), each part has its piece of the outputs'
vector, and parts without an adapter are written as ones. Inputs are shared by all parts, so that a
vector of them can be read and not written.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from research.core import matrix, tree
from research.peft.adapter import sites
from research.peft.ia3 import IA3
from research.peft.interchange import kernels
from research.peft.interchange.modules import PREFIX, Modules, Part

Tree = Any
_SCALE = "ia3_l"


def obstacle(adapters: Tree, modules: Modules) -> str | None:
  """Why these adapters cannot be written, None if they can."""
  inputs = {p: v for p, v in sites(adapters) if isinstance(v, IA3) and v.feedforward}
  return kernels.unplaced(adapters, modules) or kernels.fused(
    "vector of inputs", tree.unflatten(inputs), modules
  )


def write(adapters: Tree, modules: Modules) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The config's keys and the tensors of IA3 adapters without an `obstacle`, in float32."""
  grouped = kernels.grouped(adapters, modules)
  tensors: dict[str, np.ndarray] = {}
  held: dict[bool, dict[str, list[bool]]] = {False: {}, True: {}}  # of outputs, of inputs
  for module, group in grouped.items():
    one = next(iter(group.values()))
    live = np.max([np.atleast_1d(adapter.live) for adapter in group.values()], axis=0) > 0
    held[one.feedforward][module] = list(live)
    for layer in np.flatnonzero(live).tolist():
      scale = _fuse({part: _of_layer(adapter, layer) for part, adapter in group.items()})
      shape = (1, -1) if one.feedforward else (-1, 1)
      tensors[f"{PREFIX}{module.format(layer)}.{_SCALE}"] = scale.reshape(shape)
  inputs = kernels.targets(held[True], modules)
  config = {
    "target_modules": sorted({*inputs, *kernels.targets(held[False], modules)}),
    "feedforward_modules": inputs,
    "fan_in_fan_out": kernels.fan_in_fan_out(grouped),
    "init_ia3_weights": True,
    "modules_to_save": None,
  }
  return config, tensors


def read(
  config: Mapping[str, Any], tensors: dict[str, np.ndarray], params: Tree, modules: Modules
) -> Tree:
  """The IA3 adapters of a config and its tensors, for the base `params`.

  Raises:
    ValueError: the config asks for what we cannot honour, or a tensor has no place in `params` or
      does not fit.
  """
  kernels.require_neutral(config, kernels.NEUTRAL)
  flat = matrix.flatten(params)
  places = kernels.places(params, modules)
  tensors = dict(tensors)
  scales = kernels.take(tensors, _SCALE, places)
  kernels.require_empty(tensors, "IA3")
  found: dict[tuple[str, bool], dict[int, np.ndarray]] = {}
  for module, scale in scales.items():
    inputs = _is_feedforward(config, module)
    for path, layer, part in places[module]:
      vector = scale.reshape(-1) if inputs else kernels.piece(scale.reshape(-1), part)
      found.setdefault((path, inputs), {})[layer] = vector
  adapters = {}
  for (path, inputs), layers in found.items():
    if (path, not inputs) in found:
      raise ValueError(f"layers differ in whether {path!r} is one of feedforward_modules")
    adapters[path] = _stack(layers, flat[path].shape, inputs)
  return tree.unflatten(adapters)


def _is_feedforward(config, module):
  """As PEFT tells it, which compares the ends of names."""
  names = config.get("feedforward_modules") or []
  if isinstance(names, str):
    return bool(re.fullmatch(names, module))
  return any(module.endswith(name) for name in names)


def _of_layer(adapter: IA3, layer: int):
  """The scale of one layer, ones where it has none."""
  live = kernels.layer_of(adapter.live, adapter.live.ndim, layer)
  scale = kernels.layer_of(adapter.scale, adapter.live.ndim, layer)
  return scale if live > 0 else np.ones_like(scale)


def _fuse(scales: dict[Part, np.ndarray]):
  """The vector of a module, ones at parts that are not there."""
  (start, stop, total), first = next(iter(scales.items()))
  unit = len(first) // (stop - start)
  if stop - start == total:
    return first
  out = np.ones(unit * total, np.float32)
  for (start, stop, _), scale in scales.items():
    out[start * unit : stop * unit] = scale
  return out


def _stack(layers, shape, inputs):
  *stack, features, out = shape
  scale = kernels.stacked(layers, np.ones((*stack, features if inputs else out)))
  live = np.zeros(stack[0] if stack else 1, np.float32)
  live[list(layers)] = 1
  return IA3(jnp.asarray(scale), jnp.asarray(live.reshape(stack)), inputs)
