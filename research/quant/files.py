"""Parameters in few bits as named arrays, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import matrix, tree
from research.quant.qarray import DoubleScales, QArray
from research.quant.scheme import Scheme

Tree = Any
_PARTS = ("codes", "scale", "zero", "order", "inputs")
_DOUBLE = ("codes", "scale", "offset")


def to_arrays(params: Tree) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
  """All arrays by name, a `QArray`'s by its path and part; and how each of those is held."""
  arrays, held = {}, {}
  for path, leaf in matrix.flatten(params).items():
    if not isinstance(leaf, QArray):
      arrays[path] = np.asarray(leaf)
      continue
    held[path] = {"scheme": dataclasses.asdict(leaf.scheme), "axis": leaf.axis, "kind": leaf.kind}
    for name, part in tree.flatten({name: getattr(leaf, name) for name in _PARTS}).items():
      arrays[f"{path}/{name}"] = np.asarray(part)
  return jax.device_get(arrays), held


def from_arrays(
  arrays: Mapping[str, np.ndarray], held: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
  """The inverse of `to_arrays`: nested parameters.

  Raises:
    ValueError: a part of a `QArray` is missing.
  """
  rest = dict(arrays)
  flat: dict[str, Any] = {}
  for path, how in held.items():
    scheme = Scheme(**how["scheme"])
    names = _DOUBLE if scheme.scales == "double" else ()
    if names:
      scale: Any = DoubleScales(*(_take(rest, f"{path}/scale/{name}") for name in names))
    else:
      scale = _take(rest, f"{path}/scale")
    codes = _take(rest, f"{path}/codes")
    zero = None if scheme.symmetric else _take(rest, f"{path}/zero")
    order = _take(rest, f"{path}/order") if f"{path}/order" in rest else None
    inputs = _take(rest, f"{path}/inputs") if scheme.is_static else None
    flat[path] = QArray(codes, scale, zero, order, scheme, how["axis"], how["kind"], inputs)
  return tree.unflatten({path: jnp.asarray(array) for path, array in rest.items()} | flat)


def _take(arrays, name):
  if name not in arrays:
    raise ValueError(f"{name!r} is missing{tree.nearest(name, arrays)}")
  return jnp.asarray(arrays.pop(name))
