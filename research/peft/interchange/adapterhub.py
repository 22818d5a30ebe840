"""Bottleneck adapters as AdapterHub's package `adapters` writes them (version 1).

Its files are `adapter_config.json`, with the method under `config`, and `adapter.safetensors`. Its
sub-layers' outputs are added to the stream of residual sums after the adapter, as here in decoders
that have a norm before each sub-layer and none after it. What a bottleneck reads is told by three
keys:

  reads     is_parallel  original_ln_before
  output    false        false
  sum       false        true
  stream    true         false

A bottleneck that reads the "input" after its norm has no counterpart there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import matrix, tree
from research.peft.adapter import sites
from research.peft.bottleneck import FIELDS, Bottleneck
from research.peft.interchange.modules import Modules

Tree = Any

FILE = "adapter.safetensors"
_NAME = "adapter"  # of the adapter, which a model of theirs may have several of
_VERSION = "adapters.1.3.0"
_MODULES = ("model.layers.{}", "transformer.h.{}")  # of Llama and its like, and of GPT-2
# Our site -> their flag in the config, and their module.
_SITES = {
  "layers/attention_out": ("mh_adapter", "attention_adapters"),
  "layers/mlp_out": ("output_adapter", "output_adapters"),
}
_READS = {"output": (False, False), "sum": (False, True), "stream": (True, False)}
_ACTIVATIONS = {
  "relu": "relu",
  "gelu": "gelu",
  "gelu_tanh": "gelu_new",
  "silu": "swish",
  "tanh": "tanh",
}
_ALIASES = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}  # which they know as well
# Keys that change what the adapter computes and the values with which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "adapter_residual_before_ln": (False,),
  "cross_adapter": (False,),
  "inv_adapter": (None,),
  "leave_out": ([],),
  "ln_after": (False,),
  "original_ln_after": (True,),
  "phm_layer": (False,),
  "residual_before_ln": (True,),
  "stochastic_depth": (0.0, None),
  "use_gating": (False,),
}


def has_place(adapters: Tree, modules: Modules) -> bool:
  """Whether AdapterHub has such bottlenecks in such a model."""
  found: dict[str, Any] = dict(sites(adapters))
  kinds = {_kind(adapter) for adapter in found.values()}
  return (
    set(found) <= set(_SITES)
    and len(kinds) == 1
    and all(adapter.reads in _READS for adapter in found.values())
    and _layers(modules) in _MODULES
  )


def is_one(config: Mapping[str, Any]) -> bool:
  """Whether this is the contents of an AdapterHub `adapter_config.json`."""
  return str(config.get("version", "")).startswith("adapters.") and "config" in config


def write(adapters: Tree, modules: Modules) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The config and the tensors of bottlenecks that `has_place`, in float32."""
  found: dict[str, Any] = dict(sites(jax.device_get(adapters)))
  prefix = _layers(modules)
  size, width, normed, reads, activation, scale, dropout = _kind(next(iter(found.values())))
  parallel, before = _READS[reads]
  config = {
    **{key: values[0] for key, values in _NEUTRAL.items()},
    **{flag: path in found for path, (flag, _) in _SITES.items()},
    "dropout": dropout,
    "is_parallel": parallel,
    "ln_before": normed,
    "non_linearity": _ACTIVATIONS[activation],
    "original_ln_before": before,
    "reduction_factor": _reduction(size, width),
    "scaling": float(scale),
  }
  tensors: dict[str, np.ndarray] = {}
  for path, adapter in found.items():
    for layer in range(len(adapter.down)):
      name = f"{prefix.format(layer)}.{_SITES[path][1]}.adapters.{_NAME}"
      tensors |= {f"{name}.{key}": value for key, value in _tensors(adapter, layer).items()}
  return {"config": config, "hidden_size": size, "name": _NAME, "version": _VERSION}, tensors


def read(
  config: Mapping[str, Any], tensors: dict[str, np.ndarray], params: Tree, modules: Modules
) -> Tree:
  """The bottlenecks of a config and its tensors, for the base `params`.

  Raises:
    ValueError: the config asks for what we cannot honour, or a tensor has no place in `params` or
      does not fit.
  """
  method, name = config["config"], config["name"]
  if method.get("architecture") is not None:
    raise ValueError(f"AdapterHub's {method['architecture']!r} is not supported; bottlenecks are")
  for key, neutral in _NEUTRAL.items():
    if key in method and method[key] not in neutral:
      raise ValueError(f"adapter_config.json: {key}={method[key]!r} cannot be honoured")
  known = {theirs: ours for ours, theirs in _ACTIVATIONS.items()} | _ALIASES
  activation, scale = method["non_linearity"], method.get("scaling", 1.0)
  if activation not in known:
    raise ValueError(f"non_linearity {activation!r} is unknown{tree.nearest(activation, known)}")
  if not isinstance(scale, int | float):
    raise ValueError(f"adapter_config.json: scaling={scale!r} cannot be honoured; it is a number")
  how = (method.get("is_parallel", False), method.get("original_ln_before", False))
  # What is parallel leaves the norm before it out.
  reads = {flags: word for word, flags in _READS.items()}.get(how, "stream")
  normed, prefix = method.get("ln_before", False), _layers(modules)
  if prefix not in _MODULES:
    raise ValueError("AdapterHub's bottlenecks are read for decoders like Llama or GPT-2 alone")
  kernel = matrix.flatten(params)["layers/attention/o_proj/kernel"]
  layers, _, size = kernel.shape
  tensors, found = dict(tensors), {}
  for path, (flag, module) in _SITES.items():
    if not method.get(flag):
      continue
    each = [
      _fields(tensors, f"{prefix.format(layer)}.{module}.adapters.{name}", normed, size)
      for layer in range(layers)
    ]
    stacks: Any = [
      None if part[0] is None else jnp.asarray(np.stack(part)) for part in zip(*each, strict=True)
    ]
    found[path] = Bottleneck(
      **dict(zip(FIELDS, stacks, strict=True)),
      reads=reads,
      activation=known[activation],
      scale=float(scale),
      dropout=float(method.get("dropout") or 0.0),
    )
  if tensors:
    raise ValueError(
      f"the adapter has tensors that are of no layer of the model: {', '.join(sorted(tensors)[:3])}"
    )
  return tree.unflatten(found)


def _layers(modules: Modules) -> str:
  """The name of a layer's module in the checkpoint, with `{}` for its number; empty for no name."""
  name, found, _ = modules.get("layers/attention/q_proj/kernel", ("",))[0].partition("{}")
  return name + found


def _kind(adapter: Bottleneck) -> tuple[Any, ...]:
  """Features, width and all else in which the sites of one config agree."""
  return (
    *adapter.down.shape[1:],
    adapter.scale_norm is not None,
    adapter.reads,
    adapter.activation,
    adapter.scale,
    adapter.dropout,
  )


def _reduction(size: int, width: int) -> float:
  """A factor by which they come to the bottleneck's width, `int(size // factor)`."""
  factor = size / width
  while int(size // factor) < width:
    factor = float(np.nextafter(factor, 0))
  return factor


def _tensors(adapter: Bottleneck, layer: int) -> dict[str, np.ndarray]:
  """One layer's by their names; with a norm, which is the first step down, the product is next."""
  normed = adapter.scale_norm is not None
  at = f"adapter_down.{int(normed)}"
  found = {
    f"{at}.weight": adapter.down[layer].T,
    f"{at}.bias": adapter.bias_down[layer],
    "adapter_up.weight": adapter.up[layer].T,
    "adapter_up.bias": adapter.bias_up[layer],
  }
  if adapter.scale_norm is not None and adapter.bias_norm is not None:
    for name in ("adapter_down.0", "adapter_norm_before"):  # one module under two names
      found |= {
        f"{name}.weight": adapter.scale_norm[layer],
        f"{name}.bias": adapter.bias_norm[layer],
      }
  return {key: np.array(value, np.float32, order="C") for key, value in found.items()}


def _fields(tensors, name, normed, size):
  """One layer's arrays in the order of `FIELDS`, taken out of `tensors`."""

  def take(key):
    if f"{name}.{key}" not in tensors:
      raise ValueError(f"the adapter has no {name}.{key}")
    return np.asarray(tensors.pop(f"{name}.{key}"), np.float32)

  at = f"adapter_down.{int(normed)}"
  down, bias_down = take(f"{at}.weight").T, take(f"{at}.bias")
  up, bias_up = take("adapter_up.weight").T, take("adapter_up.bias")
  if (down.shape[0], up.shape[1]) != (size, size):
    raise ValueError(f"{name} is of {down.shape[0]} features; the model has {size}")
  scale_norm = bias_norm = None
  if normed:
    scale_norm, bias_norm = take("adapter_norm_before.weight"), take("adapter_norm_before.bias")
    for part in ("weight", "bias"):  # the same module under its other name
      tensors.pop(f"{name}.adapter_down.0.{part}", None)
  return down, bias_down, up, bias_up, scale_norm, bias_norm
