"""Which parameters are held in few bits, and how: ordered rules over paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.core import config, matrix, tree
from research.core.matrix import is_matrix
from research.quant.mixed import Mixed
from research.quant.qarray import QArray
from research.quant.qarray import quantize as round_to_nearest
from research.quant.scheme import TENSOR, Scheme

Tree = Any
# Of a stack that is the scheme of all layers, or where they differ that of each, None for a layer
# that stays as it is.
Choice = Scheme | tuple[Scheme | None, ...]
Rules = Sequence[Mapping[str, Any]] | Mapping[str, Choice]
LAYERS = "layers/"


def schemes(rules: Rules, params: Tree) -> dict[str, Choice]:
  """The scheme of every parameter that a rule gives one.

  Args:
    rules: mappings with `target`, a regular expression of whole paths, and the fields of a
      `Scheme`, or `kind` "none" for what is to stay as it is. A layer's own path has its number,
      from 0, in it: `layers/mlp/up_proj/kernel` is of all layers, `layers/3/mlp/up_proj/kernel` of
      one. A layer takes the first rule that matches either; parameters that are no matrices are
      left out of all. Or what this returns.
    params: the parameters, or their shapes.

  Raises:
    ValueError: a rule matches nothing, tells no scheme, or its groups do not divide a matrix.
  """
  if isinstance(rules, Mapping):
    return dict(rules)
  flat = matrix.flatten(params)
  found: dict[str, Choice] = {}
  made: dict[int, Scheme | None] = {}
  for path, numbers in ruled(rules, params).items():
    for number in dict.fromkeys(numbers):
      if number is not None and number not in made:
        made[number] = _scheme(rules[number])
    each = tuple(None if number is None else made[number] for number in numbers)
    own = distinct(each)
    for scheme in own:
      require_fits(path, flat[path], scheme)
    if own:
      found[path] = own[0] if len(set(each)) == 1 else each
  return found


def ruled(rules: Sequence[Mapping[str, Any]], params: Tree) -> dict[str, tuple[int | None, ...]]:
  """By path of a matrix, the number of the rule that each of its layers takes, or None.

  What is in no stack of layers counts as one layer. Paths that no rule matches are left out.

  Raises:
    ValueError: a rule matches nothing or has no target.
  """
  names = {}
  for path, leaf in matrix.flatten(params).items():
    if is_quantizable(path):
      within = path.removeprefix(LAYERS)
      layers = range(leaf.shape[0]) if within != path else ()
      names[path] = [f"{LAYERS}{number}/{within}" for number in layers]
  numbered = [(_target(rule), number) for number, rule in enumerate(rules)]
  taken = tree.first_match(numbered, [name for path in names for name in (path, *names[path])])
  found = {}
  for path, own in names.items():
    both = [(taken.get(path), taken.get(name)) for name in own or [path]]
    each = tuple(min((n for n in pair if n is not None), default=None) for pair in both)
    if any(number is not None for number in each):
      found[path] = each
  return found


def distinct(choice: Choice) -> list[Scheme]:
  """The schemes in a choice, each once."""
  each = (choice,) if isinstance(choice, Scheme) else choice
  return list(dict.fromkeys(scheme for scheme in each if scheme is not None))


def of_layer(choices: Mapping[str, Choice], number: int) -> dict[str, Scheme]:
  """The schemes of the layer of that number, by the paths of `choices`."""
  each = {
    path: choice if isinstance(choice, Scheme) else choice[number]
    for path, choice in choices.items()
  }
  return {path: scheme for path, scheme in each.items() if scheme is not None}


def _scheme(rule):
  section = {key: value for key, value in rule.items() if key != "target"}
  if section.get("kind") == "none":
    return None
  return config.call({"scheme": Scheme}, {"name": "scheme", **section})


def require_fits(path: str, leaf: Any, scheme: Scheme) -> None:
  """Raises ValueError unless the parameter is an array that can be held so."""
  if is_matrix(leaf):
    kinds = leaf.schemes if isinstance(leaf, Mixed) else (leaf.scheme,)
    told = " and ".join(dict.fromkeys(held.kind for held in kinds if held is not None))
    raise ValueError(f"{path!r} is held in {told} already")
  if axis_of(path) == -1 and scheme.group == TENSOR:
    raise ValueError(f"{path!r} is looked up row by row: group -1 is for kernels; 0 is a row's")
  scheme.require_fits(leaf.shape[axis_of(path)], path)


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
  """`params` rounded to nearest wherever a rule says so: a `QArray`, or a `Mixed` of layers.

  Args: see `schemes`.

  Raises:
    ValueError: also where a parameter is not finite, or a scheme has to be calibrated.
  """
  flat = matrix.flatten(params)
  for path, choice in schemes(rules, params).items():
    require_finite(path, flat[path])
    require_no_range(path, choice)
    flat[path] = rounded(flat[path], choice, axis_of(path))
  return tree.unflatten(flat)


def rounded(values: jax.Array, choice: Choice, axis: int = -2) -> QArray | Mixed:
  """A parameter rounded to nearest; see `qarray.quantize`."""
  if isinstance(choice, Scheme):
    return round_to_nearest(values, choice, axis)
  each = enumerate(choice)
  return Mixed(
    tuple(values[i] if s is None else round_to_nearest(values[i], s, axis) for i, s in each)
  )


def require_finite(path: str, values: jax.Array) -> None:
  """Raises ValueError if a parameter has a number that is none, where there are numbers."""
  if isinstance(values, jax.core.Tracer):
    return
  if not jnp.isfinite(values).all():
    raise ValueError(f"{path!r} has numbers that are not finite; mend the checkpoint first")


def require_no_range(path: str, choice: Choice) -> None:
  """Raises ValueError if activations are to have one scale, which only calibration finds."""
  for scheme in distinct(choice):
    if not scheme.is_static:
      continue
    raise ValueError(
      f"{path!r}: range {scheme.range!r} of activations is calibrated by text, at projections of"
      " layers that train, or by research.export --config; range 'row' needs none"
    )


def dequantize(params: Tree) -> Tree:
  """`params` with arrays alone, each of the type it stands for."""
  return jax.tree.map(
    lambda leaf: leaf.astype(leaf.dtype) if is_matrix(leaf) else leaf, params, is_leaf=is_matrix
  )


@dataclasses.dataclass(frozen=True)
class Size:
  """What a tree of parameters takes, in bytes; `dense` with arrays alone."""

  held: int
  dense: int


def size(params: Tree) -> Size:
  """The bytes of `params` as they are held."""
  flat = matrix.flatten(params)
  dense = sum(leaf.size * leaf.dtype.itemsize for leaf in flat.values())
  return Size(tree.nbytes(params), dense)
