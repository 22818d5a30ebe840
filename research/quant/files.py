"""Parameters in few bits as named arrays, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import matrix, tree
from research.quant.mixed import Mixed
from research.quant.qarray import DoubleScales, QArray
from research.quant.scheme import Scheme

Tree = Any
_PARTS = ("codes", "scale", "zero", "order", "inputs")
_DOUBLE = ("codes", "scale", "offset")


def to_arrays(params: Tree) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
  """All arrays by name, a `QArray`'s by its path and part; and how each of those is held.

  A `Mixed` has its layers at its path and their number; how is told in a list, None for an array.
  """
  arrays: dict[str, Any] = {}
  held: dict[str, dict[str, Any]] = {}
  for path, leaf in matrix.flatten(params).items():
    if isinstance(leaf, Mixed):
      each = [_parts(f"{path}/{number}", part) for number, part in enumerate(leaf.each)]
      held[path] = {"layers": [how for _, how in each]}
    else:
      each = [_parts(path, leaf)]
      if (how := each[0][1]) is not None:
        held[path] = how
    for own, _ in each:
      arrays |= own
  return jax.device_get(arrays), held


def _parts(path, leaf):
  """An array or a `QArray` as named arrays, and how the latter is held, else None."""
  if not isinstance(leaf, QArray):
    return {path: np.asarray(leaf)}, None
  how = {"scheme": dataclasses.asdict(leaf.scheme), "axis": leaf.axis, "kind": leaf.kind}
  parts = tree.flatten({name: getattr(leaf, name) for name in _PARTS})
  return {f"{path}/{name}": np.asarray(part) for name, part in parts.items()}, how


def from_arrays(
  arrays: Mapping[str, np.ndarray], held: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
  """The inverse of `to_arrays`: nested parameters.

  Raises:
    ValueError: a part of a `QArray` is missing, or a layer.
  """
  rest = dict(arrays)
  flat: dict[str, Any] = {}
  for path, how in held.items():
    if "layers" in how:
      each = enumerate(how["layers"])
      flat[path] = Mixed(tuple(_joined(rest, f"{path}/{number}", own) for number, own in each))
    else:
      flat[path] = _joined(rest, path, how)
  return tree.unflatten({path: jnp.asarray(array) for path, array in rest.items()} | flat)


def _joined(rest, path, how):
  """What `_parts` took apart, whose arrays are taken out of `rest`."""
  if how is None:
    return _take(rest, path)
  scheme = Scheme(**how["scheme"])
  if scheme.scales == "double":
    scale: Any = DoubleScales(*(_take(rest, f"{path}/scale/{name}") for name in _DOUBLE))
  else:
    scale = _take(rest, f"{path}/scale")
  codes = _take(rest, f"{path}/codes")
  zero = None if scheme.symmetric else _take(rest, f"{path}/zero")
  order = _take(rest, f"{path}/order") if f"{path}/order" in rest else None
  inputs = _take(rest, f"{path}/inputs") if scheme.is_static else None
  return QArray(codes, scale, zero, order, scheme, how["axis"], how["kind"], inputs)


def _take(arrays, name):
  if name not in arrays:
    raise ValueError(f"{name!r} is missing{tree.nearest(name, arrays)}")
  return jnp.asarray(arrays.pop(name))
