"""What every method's pytree has in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import jax

from research.core import matrix, tree

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

  def merge_bias(self, bias: jax.Array) -> jax.Array:
    """The bias that belongs to the merged kernel."""
    return bias

  def trains(self, leaf: str) -> bool:
    """Whether training changes `leaf`, the path of an array within the adapter: its field."""
    return leaf not in self.constants

  @property
  def mergeable(self) -> bool:
    """Whether the method is a change of a kernel."""
    return type(self).merge is not Adapter.merge

  @property
  def frozen_kernel(self) -> bool:
    """Whether what the adapter knows of its kernel holds only while that does not train."""
    return False

  @property
  def reads_kernel(self) -> bool:
    """Whether it goes by the kernel as it is, and not by the product alone."""
    return False

  @property
  def spares_head(self) -> bool:
    """Whether it changes a table where tokens are looked up, and not where it is the head, too."""
    return False

  def on(self, kernel: Any, before: Any) -> Adapter:
    """This new adapter on `kernel`, rounded, in place of `before`, for which it was made."""
    del kernel, before
    return self

  def materialize(self) -> Adapter:
    """What acts at the tap: of a method that trains something else, what it is made into."""
    return self

  @property
  def by_layer(self) -> bool:
    """Whether all that trains of it, in a stack of layers, has their axis in front."""
    return True

  @property
  def virtual_tokens(self) -> int:
    """How many tokens, with ids -1, -2, ..., it needs in front of every document."""
    return 0

  @property
  def offset(self) -> int:
    """How many positions it takes before a document's first, without tokens there."""
    return 0


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
      if adapter.trains(leaf):
        found.add(f"{path}/{leaf}")
  return frozenset(found)


def moved(adapters: Tree, params: Tree, before: Tree) -> Tree:
  """New `adapters` as they begin on `params`, which have been rounded, and were `before`."""
  flat, old = matrix.flatten(params), matrix.flatten(before)
  return tree.unflatten(
    {
      path: node.on(flat[path], old[path]) if path in flat else node
      for path, node in sites(adapters)
    }
  )


def materialize(variables: Tree) -> Tree:
  """A tree that holds adapters as they are trained -> as models take them."""
  return jax.tree.map(
    lambda node: node.materialize() if is_adapter(node) else node, variables, is_leaf=is_adapter
  )


def virtual_ids(adapters: Tree) -> list[int]:
  """The ids -1, -2, ... of the virtual tokens that stand in front of every document."""
  count = sum(node.virtual_tokens for _, node in sites(adapters) if is_adapter(node))
  return list(range(-1, -1 - count, -1))


def offset(adapters: Tree) -> int:
  """How many positions adapters take before a document's first, without tokens there."""
  return sum(node.offset for _, node in sites(adapters) if is_adapter(node))
