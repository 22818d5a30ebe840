"""What every method's pytree has in common."""

from collections.abc import Iterator
from typing import Any, ClassVar

import jax

from research.core import tree

Tree = Any


class Adapter:
  """Base of the pytrees in the `adapters` collection.

  A method is a `flax.struct.dataclass` of this class, in a file of its own, with
  `__call__(value, *, rng, **context)` for the tap it binds at, and, where the method is a
  change of the kernel, `merge(kernel) -> kernel`.

  constants: names of fields that are never trained.
  """

  constants: ClassVar[frozenset[str]] = frozenset()

  def __call__(self, value, *, rng=None, **context):
    raise TypeError(f"{type(self).__name__} does not say what it does at a tap")

  def merge(self, kernel: jax.Array) -> jax.Array:
    """The kernel that acts alone as `kernel` with this adapter does."""
    raise ValueError(f"{type(self).__name__} is no change of a kernel and cannot be merged")


def is_adapter(node: Any) -> bool:
  """True for a method's pytree, for use as `is_leaf`."""
  return isinstance(node, Adapter)


def sites(adapters: Tree) -> Iterator[tuple[str, Adapter]]:
  """`(path, adapter)` of every bound site, in tree order."""
  yield from tree.flatten(adapters, is_leaf=is_adapter).items()


def trainable_paths(adapters: Tree) -> frozenset[str]:
  """The paths of the leaves that training changes."""
  found = set()
  for path, adapter in sites(adapters):
    for leaf in tree.flatten(adapter):
      if leaf.split("/")[0] not in adapter.constants:
        found.add(f"{path}/{leaf}")
  return frozenset(found)
