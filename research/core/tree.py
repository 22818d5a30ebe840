"""Trees of arrays: paths, rules over paths, and the trainable/frozen split.

A path is the keys from the root to a leaf joined by `/`, as in
`layers/attention/q_proj/kernel`. A rule is a regular expression that must match a
whole path; in a list of rules the first match wins and a rule that matches nothing
is an error.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax

T = TypeVar("T")
Tree = Any


def path_of(keys: tuple[Any, ...]) -> str:
  """The `/`-joined path of the key tuple that `jax.tree_util` hands out."""
  return "/".join(jax.tree_util.keystr((key,), simple=True) for key in keys)


def flatten(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
  """`path -> leaf` in tree order."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
  return {path_of(keys): leaf for keys, leaf in leaves}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The nested dict whose paths are the keys of `flat`."""
  root: dict[str, Any] = {}
  for path, leaf in flat.items():
    *parents, name = path.split("/")
    node = root
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return root


def map_with_path(
  fn: Callable[..., Any], tree: Tree, *rest: Tree, is_leaf: Callable[[Any], bool] | None = None
) -> Tree:
  """`fn(path, leaf, *leaves_of_rest)` at every leaf, and at what `is_leaf` takes for one."""
  return jax.tree_util.tree_map_with_path(
    lambda keys, *leaves: fn(path_of(keys), *leaves), tree, *rest, is_leaf=is_leaf
  )


def partition(tree: Tree, keep: Callable[[str, Any], bool]) -> tuple[Tree, Tree]:
  """Splits `tree` in two of its own shape; a leaf is None in the tree it is not in.

  None is an empty subtree to JAX, so each half differentiates, optimizes and saves
  only what it holds. `combine` is the inverse.
  """
  chosen = map_with_path(lambda path, leaf: leaf if keep(path, leaf) else None, tree)
  others = map_with_path(lambda path, leaf: None if keep(path, leaf) else leaf, tree)
  return chosen, others


def differentiated(tree: Tree) -> tuple[Tree, Tree]:
  """Splits the values of `tree`, as `partition` does, by whether someone differentiates them.

  Args:
    tree: what the forward part of a `custom_vjp` with `symbolic_zeros` is given: leaves with
      `value` and `perturbed`.
  """
  wanted = jax.tree.map(lambda leaf: leaf.value if leaf.perturbed else None, tree)
  fixed = jax.tree.map(lambda leaf: None if leaf.perturbed else leaf.value, tree)
  return wanted, fixed


def combine(first: Tree, second: Tree) -> Tree:
  """The tree whose every leaf is the one of `first` and `second` that is not None."""
  return jax.tree.map(
    lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None
  )


def nearest(name: str, names: Iterable[str]) -> str:
  """`"; did you mean 'x'?"` for the closest of `names`, or an empty string."""
  close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
  return f"; did you mean {close[0]!r}?" if close else ""


def first_match(rules: Sequence[tuple[str, T]], paths: Iterable[str]) -> dict[str, T]:
  """`path -> value` of the first rule whose pattern matches the whole path.

  Paths that no rule matches are left out.

  Raises:
    ValueError: a rule matches no path at all.
  """
  compiled = [(re.compile(pattern), value) for pattern, value in rules]
  paths = list(paths)
  found: dict[str, T] = {}
  used = [False] * len(compiled)
  for path in paths:
    matches = [i for i, (pattern, _) in enumerate(compiled) if pattern.fullmatch(path)]
    for i in matches:
      used[i] = True
    if matches:
      found[path] = compiled[matches[0]][1]
  for (pattern, _), hit in zip(compiled, used, strict=True):
    if not hit:
      raise ValueError(
        f"rule {pattern.pattern!r} matches none of {len(paths)} paths"
        f"{nearest(pattern.pattern, paths)}"
      )
  return found


def count(tree: Tree) -> int:
  """The number of elements in all leaves."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
  """The number of bytes in all leaves."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
