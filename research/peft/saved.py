"""Parameters of the base that were trained whole beside adapters, which PEFT's files hold, too."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax import struct

from research.core import matrix, tree
from research.peft.adapter import Adapter, is_adapter, sites

Tree = Any


@struct.dataclass
class Saved(Adapter):
  """What a parameter of the base became, at its path (PEFT's `modules_to_save`).

  It acts in the parameter's place, where `install` puts it, and not at a tap.

  shared: whether it is a table of tokens that is the head, too.
  """

  value: jax.Array
  shared: bool = struct.field(pytree_node=False, default=False)

  def __call__(self, value, **_):
    raise TypeError("a Saved parameter acts in params, where peft.install puts it")

  def merge(self, kernel):
    """The parameter, in the type of the one that it replaces."""
    return self.value.astype(kernel.dtype)


def with_saved(adapters: Tree, params: Tree, paths: Iterable[str]) -> Tree:
  """`adapters`, and beside them the parameters at `paths` of `params`.

  Raises:
    ValueError: a parameter has an adapter.
  """
  flat, found = matrix.flatten(params), tree.flatten(adapters, is_leaf=is_adapter)
  for path in paths:
    if path in found:
      raise ValueError(f"{path!r} was trained and has an adapter; PEFT's files hold one of them")
    found[path] = Saved(flat[path], is_shared(path, flat))
  return tree.unflatten(found)


def is_shared(path: str, flat: Mapping[str, Any]) -> bool:
  """Whether `path` of the flat parameters is a table of tokens that is the head, too."""
  return path == "embed/embedding" and "lm_head/kernel" not in flat


def install(params: Tree, adapters: Tree) -> tuple[Tree, Tree]:
  """`params` with what was saved beside `adapters` in its place, and the other adapters.

  Raises:
    ValueError: something was saved that `params` have not, or of another shape.
  """
  flat, others = matrix.flatten(params), {}
  for path, adapter in sites(adapters):
    if not isinstance(adapter, Saved):
      others[path] = adapter
    elif path not in flat or flat[path].shape != adapter.value.shape:
      of = f"of {flat[path].shape}" if path in flat else f"not{tree.nearest(path, flat)}"
      raise ValueError(f"{path!r} {adapter.value.shape} was saved; the model has one {of}")
    else:
      flat[path] = adapter.merge(flat[path])
  return tree.unflatten(flat), tree.unflatten(others)
