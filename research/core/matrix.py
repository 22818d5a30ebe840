"""Parameters in another form than that of an array."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from research.core import tree

# In a trainable tree, what was measured for a parameter and does not learn.
MEASURED = re.compile(r"params/.*/kernel/inputs")


class Matrix:
  """A projection's kernel `[..., in, out]` in another form than that of an array; a pytree.

  It stands where the array would, and is one parameter to whoever looks for those (`flatten`).
  Leading axes are stacks and are sliced like any array's, unless a form says otherwise.
  """

  @property
  def shape(self) -> tuple[int, ...]:
    """That of the array it stands for."""
    raise NotImplementedError

  @property
  def ndim(self) -> int:
    """How many axes that has."""
    return len(self.shape)

  @property
  def size(self) -> int:
    """How many numbers that has."""
    return math.prod(self.shape)

  @property
  def dtype(self) -> Any:
    """The type of that array."""
    raise NotImplementedError

  def astype(self, dtype: Any) -> jax.Array:
    """The array, in `dtype`."""
    raise NotImplementedError

  def product(self, x: jax.Array) -> jax.Array:
    """`x [..., in]` times the matrix, in the type of `x` -> float32 `[..., out]`."""
    raise NotImplementedError

  def rows(self, ids: jax.Array) -> jax.Array:
    """Of a table `[V, D]`, whose inputs lie along its last axis: `ids [...]` -> `[..., D]`."""
    raise NotImplementedError


def is_matrix(node: Any) -> bool:
  """True for a parameter in another form than an array, for use as `is_leaf`."""
  return isinstance(node, Matrix)


def flatten(params: Any) -> dict[str, Any]:
  """`path -> parameter`, in tree order: arrays, and each `Matrix` as a whole."""
  return tree.flatten(params, is_leaf=is_matrix)


def count(params: Any) -> int:
  """The number of numbers in all parameters, whatever they are held in."""
  return sum(leaf.size for leaf in flatten(params).values())


def parameter_of(path: str) -> str:
  """The path of the parameter that the leaf at `path` is or is a part of; an adapter's as it is."""
  found = re.match(r"(?!adapters/).*?/(kernel|embedding)(?=/)", path)
  return found[0] if found else path


def rows(table: jax.Array | Matrix, ids: jax.Array) -> jax.Array:
  """`ids [...]` of a table `[V, D]` -> `[..., D]` in its type."""
  return table.rows(ids) if isinstance(table, Matrix) else jnp.take(table, ids, axis=0)
