"""Bottlenecks that neither PEFT nor AdapterHub has, in files of the same names as PEFT's.

The config has, under `sites`, what each of them reads and does; tensors are named by site and field
of `Bottleneck`, `layers/mlp_out/down [L, D, R]`. PEFT refuses the `peft_type`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import matrix, tree
from research.peft import bottleneck
from research.peft.adapter import sites
from research.peft.bottleneck import FIELDS, Bottleneck
from research.peft.interchange.modules import Modules

Tree = Any

_HOW = ("reads", "activation", "scale", "dropout")


def write(adapters: Tree, modules: Modules) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The config's keys and the tensors of bottlenecks, in float32."""
  del modules
  found, tensors = {}, {}
  for path, adapter in sites(jax.device_get(adapters)):
    found[path] = {name: getattr(adapter, name) for name in _HOW}
    for name in FIELDS:
      if (value := getattr(adapter, name)) is not None:
        tensors[f"{path}/{name}"] = np.array(value, np.float32, order="C")
  return {"sites": found}, tensors


def read(
  config: Mapping[str, Any], tensors: dict[str, np.ndarray], params: Tree, modules: Modules
) -> Tree:
  """The bottlenecks of a config and its tensors, for the base `params`.

  Raises:
    ValueError: a site is none of the model's, or a tensor has no place there or does not fit.
  """
  del modules
  flat, found = matrix.flatten(params), {}
  known, tensors = bottleneck.sites(flat), dict(tensors)
  for path, how in config["sites"].items():
    if path not in known:
      raise ValueError(f"the adapter has {path!r}, the model does not{tree.nearest(path, known)}")
    if set(how) != set(_HOW):
      raise ValueError(f"a bottleneck is told by {', '.join(_HOW)}, not by {', '.join(how)}")
    values = {name: tensors.pop(f"{path}/{name}", None) for name in FIELDS}
    shape = flat[f"{path.rpartition('/')[0]}/attention/o_proj/kernel"].shape
    _check(path, values, shape[0], shape[-1])
    arrays: dict[str, Any] = {
      name: None if value is None else jnp.asarray(value, jnp.float32)
      for name, value in values.items()
    }
    found[path] = Bottleneck(**arrays, **how)
  if tensors:
    raise ValueError(f"tensors that are of no bottleneck: {', '.join(sorted(tensors)[:3])}")
  return tree.unflatten(found)


def _check(path, values, layers, features):
  size = 0 if values["down"] is None else values["down"].shape[-1]
  wanted = {
    "down": (layers, features, size),
    "bias_down": (layers, size),
    "up": (layers, size, features),
    "bias_up": (layers, features),
    "scale_norm": (layers, features),
    "bias_norm": (layers, features),
  }
  for name, shape in wanted.items():
    optional = name.endswith("_norm") and values["scale_norm"] is values["bias_norm"]
    got = None if values[name] is None else values[name].shape
    if got != shape and not (got is None and optional):
      raise ValueError(f"{path}/{name} is {got}; the model needs {shape}")
