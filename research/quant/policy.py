"""Which parameters are held in few bits, and how: ordered rules over paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.core import config, matrix, tree
from research.core.matrix import is_matrix
from research.quant.qarray import quantize as round_to_nearest
from research.quant.scheme import TENSOR, Scheme

Tree = Any
Rules = Sequence[Mapping[str, Any]] | Mapping[str, Scheme]


def schemes(rules: Rules, params: Tree) -> dict[str, Scheme]:
  """The scheme of every parameter that a rule gives one.

  Args:
    rules: mappings with `target`, a regular expression of whole paths, and the fields of a
      `Scheme`, or `kind` "none" for what is to stay as it is. A path takes the first rule that
      matches it; parameters that are no matrices are left out of all. Or what this returns.
    params: the parameters, or their shapes.

  Raises:
    ValueError: a rule matches nothing, tells no scheme, or its groups do not divide a matrix.
  """
  if isinstance(rules, Mapping):
    return dict(rules)
  flat = matrix.flatten(params)
  matrices = [path for path in flat if is_quantizable(path)]
  found = {}
  for path, rule in tree.first_match([(_target(rule), rule) for rule in rules], matrices).items():
    section = {key: value for key, value in rule.items() if key != "target"}
    if section.get("kind") == "none":
      continue
    scheme = config.call({"scheme": Scheme}, {"name": "scheme", **section})
    if is_matrix(flat[path]):
      raise ValueError(f"{path!r} is held in {flat[path].scheme.kind} already")
    if axis_of(path) == -1 and scheme.group == TENSOR:
      raise ValueError(f"{path!r} is looked up row by row: group -1 is for kernels; 0 is a row's")
    scheme.require_fits(flat[path].shape[axis_of(path)], path)
    found[path] = scheme
  return found


def is_quantizable(path: str) -> bool:
  """Whether it is the path of a projection's kernel or of a table of tokens."""
  return path.endswith("/kernel") or path == "embed/embedding"


def axis_of(path: str) -> int:
  """The axis along which the inputs of a parameter's matrix lie: a table's are its last."""
  return -1 if path.endswith("/embedding") else -2


def _target(rule):
  if "target" not in rule:
    raise ValueError(f"a rule has no target, a regular expression of parameters' paths: {rule}")
  return rule["target"]


def quantize(params: Tree, rules: Rules) -> Tree:
  """`params` with a `QArray`, rounded to nearest, wherever a rule says so.

  Args: see `schemes`.

  Raises:
    ValueError: also where a parameter is not finite, or a scheme has to be calibrated.
  """
  flat = matrix.flatten(params)
  for path, scheme in schemes(rules, params).items():
    require_finite(path, flat[path])
    require_no_range(path, scheme)
    flat[path] = round_to_nearest(flat[path], scheme, axis_of(path))
  return tree.unflatten(flat)


def require_finite(path: str, values: jax.Array) -> None:
  """Raises ValueError if a parameter has a number that is none, where there are numbers."""
  if isinstance(values, jax.core.Tracer):
    return
  if not jnp.isfinite(values).all():
    raise ValueError(f"{path!r} has numbers that are not finite; mend the checkpoint first")


def require_no_range(path: str, scheme: Scheme) -> None:
  """Raises ValueError if activations are to have one scale, which only calibration finds."""
  if scheme.is_static:
    raise ValueError(
      f"{path!r}: range {scheme.range!r} of activations is calibrated by text, at projections of"
      " layers, by research.export --config; range 'row' needs none"
    )


def dequantize(params: Tree) -> Tree:
  """`params` with arrays alone, each of the type it stands for."""
  return jax.tree.map(
    lambda leaf: leaf.astype(leaf.dtype) if is_matrix(leaf) else leaf, params, is_leaf=is_matrix
  )


@dataclasses.dataclass(frozen=True)
class Size:
  """What a tree of parameters takes, in bytes; `dense` with its `QArray`s as arrays."""

  held: int
  dense: int


def size(params: Tree) -> Size:
  """The bytes of `params` as they are held."""
  flat = matrix.flatten(params)
  dense = sum(leaf.size * leaf.dtype.itemsize for leaf in flat.values())
  return Size(tree.nbytes(params), dense)
