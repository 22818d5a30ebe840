"""VeRA as PEFT writes it: one `vera_A` and one `vera_B` for all modules, and their vectors.

PEFT's matrices are as large as the largest module's and each module uses the first rows or columns
that it needs. Where a checkpoint fuses projections, PEFT has one VeRA for the fused module: reading
gives each part the vectors and its rows of `vera_B`; parts that have their own cannot be written.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from research.core import matrix, tree
from research.peft.interchange import kernels
from research.peft.interchange.modules import PREFIX, Modules
from research.peft.vera import VeRA

Tree = Any
_A, _B = "base_model.vera_A", "base_model.vera_B"
_D, _LAMBDA_B = "vera_lambda_d", "vera_lambda_b"


def obstacle(adapters: Tree, modules: Modules) -> str | None:
  """Why these adapters cannot be written, None if they can."""
  return kernels.unplaced(adapters, modules) or kernels.fused("VeRA", adapters, modules)


def write(adapters: Tree, modules: Modules) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The config's keys and the tensors of VeRA adapters without an `obstacle`, in float32.

  Raises:
    ValueError: adapters were not made of the same two matrices.
  """
  grouped = {
    m: next(iter(group.values())) for m, group in kernels.grouped(adapters, modules).items()
  }
  each = {
    module: {i: a for i, a in enumerate(_layers(adapter)) if a.a.any()}
    for module, adapter in grouped.items()
  }
  everyone = [layer for layers in each.values() for layer in layers.values()]
  a: Any = max(everyone, key=lambda layer: len(layer.a)).a
  b: Any = max(everyone, key=lambda layer: layer.b.shape[1]).b
  tensors: dict[str, np.ndarray] = {_A: np.ascontiguousarray(a.T), _B: np.ascontiguousarray(b.T)}
  for module, layers in each.items():
    for i, layer in layers.items():
      name = f"{PREFIX}{module.format(i)}"
      tensors[f"{name}.{_D}"] = np.asarray(layer.lambda_d) * _ratio(module, layer, a, b)
      tensors[f"{name}.{_LAMBDA_B}"] = np.asarray(layer.lambda_b)
  held = {m: [i in each[m] for i in range(len(_layers(v)))] for m, v in grouped.items()}
  config = {
    "r": int(a.shape[1]),
    **kernels.settings(held, grouped, modules),
    "projection_prng_key": 0,
    "save_projection": True,
    "vera_dropout": max(adapter.dropout for adapter in grouped.values()),
    "d_initial": 0.1,
    "init_weights": True,
  }
  return config, tensors


def read(
  config: Mapping[str, Any], tensors: dict[str, np.ndarray], params: Tree, modules: Modules
) -> Tree:
  """The VeRA adapters of a config and its tensors, for the base `params`.

  Raises:
    ValueError: the matrices were not saved, the config asks for what we cannot honour, or a tensor
      has no place in `params` or does not fit.
  """
  kernels.require_neutral(config, kernels.NEUTRAL)
  tensors = dict(tensors)
  if _A not in tensors or _B not in tensors:
    raise ValueError(
      "the adapter holds no vera_A and vera_B, which PEFT would draw anew; save it with"
      " save_projection=True"
    )
  a, b = (np.asarray(tensors.pop(name), np.float32).T for name in (_A, _B))  # [in, r], [r, out]
  flat = matrix.flatten(params)
  places = kernels.places(params, modules)
  held = {suffix: kernels.take(tensors, suffix, places) for suffix in (_D, _LAMBDA_B)}
  kernels.require_together(held)
  kernels.require_empty(tensors, "VeRA")
  found: dict[str, dict[int, tuple[np.ndarray, ...]]] = {}
  for module, lambda_d in held[_D].items():
    lambda_b = held[_LAMBDA_B][module]
    for path, layer, part in places[module]:
      features, out = flat[path].shape[-2:]
      low, high = a[:features], kernels.piece(b[:, : len(lambda_b)], part)
      vector = kernels.piece(lambda_b, part)
      if len(low) != features or high.shape[1] != out or len(vector) != out:
        raise ValueError(f"{module}: {a.shape} x {b.shape} does not fit {path} {flat[path].shape}")
      found.setdefault(path, {})[layer] = (low, high, lambda_d, vector)
  dropout = float(config.get("vera_dropout") or 0.0)
  return tree.unflatten(
    {path: _stack(layers, flat[path].shape[:-2], dropout) for path, layers in found.items()}
  )


def _layers(adapter: VeRA) -> list[VeRA]:
  """The adapter of each layer."""
  leaves = (adapter.a, adapter.b, adapter.lambda_d, adapter.lambda_b)
  if adapter.a.ndim == 2:
    return [adapter]
  return [VeRA(*each) for each in zip(*leaves, strict=True)]


def _ratio(module, layer, a, b):
  """What `layer.a` is of the first rows of `a`: each site begins with a scale of its own."""
  mine = a[: len(layer.a)]
  ratio = np.linalg.norm(layer.a) / np.linalg.norm(mine)
  same = np.allclose(layer.a, ratio * mine, rtol=1e-4, atol=1e-6)
  if not same or not np.array_equal(layer.b, b[:, : layer.b.shape[1]]):
    raise ValueError(
      f"the VeRA at {module!r} has matrices of its own; PEFT has two for all modules"
    )
  return np.float32(ratio)


def _stack(layers, stack, dropout):
  """One VeRA of the fields of some layers; the others have zeros."""
  if not stack:
    return VeRA(*map(jnp.asarray, layers[0]), dropout)
  leaves = []
  for each in zip(*layers.values(), strict=True):
    out = np.zeros((*stack, *each[0].shape), np.float32)
    out[list(layers)] = each
    leaves.append(jnp.asarray(out))
  return VeRA(*leaves, dropout)
