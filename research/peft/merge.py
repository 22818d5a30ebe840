"""Folding adapters into the kernels that they change, and taking them out again."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from research.core import matrix, tree
from research.peft.adapter import sites

Tree = Any


def merge(params: Tree, adapters: Tree) -> Tree:
  """`params` with every adapter folded into its kernel, and the bias beside it.

  Raises:
    ValueError: an adapter's method cannot be merged, or its site is not in `params`, or is a table
      that is the head, too, which the adapter leaves as it is.
  """
  return tree.unflatten(matrix.flatten(params) | dict(merged(params, adapters)))


def merged(params: Tree, adapters: Tree) -> Iterator[tuple[str, jax.Array]]:
  """What `merge` puts in place of the parameters at these paths, computed one after the other.

  The parameters may be NumPy arrays, too.

  Raises:
    ValueError: as `merge`.
  """
  kept = covered(params, adapters)
  for path, adapter in sites(adapters):
    yield path, adapter.merge(jax.tree.map(jnp.asarray, kept[path]))
    bias = _bias(path)
    if bias in kept:
      yield bias, adapter.merge_bias(jnp.asarray(kept[bias]))


def covered(params: Tree, adapters: Tree) -> dict[str, jax.Array]:
  """The kernels and biases that `merge` will replace, by path, for `unmerge` to put back.

  They are the arrays of `params` and no copies.

  Raises:
    ValueError: as `merge`.
  """
  require_mergeable(adapters)
  flat = matrix.flatten(params)
  kept: dict[str, jax.Array] = {}
  for path, adapter in sites(adapters):
    if path not in flat:
      raise ValueError(f"adapter at {path!r} has no parameter{tree.nearest(path, flat)}")
    if adapter.spares_head and "lm_head/kernel" not in flat:
      raise ValueError(f"{path!r} is the head, too: what changes it as a table cannot be merged")
    kept |= {name: flat[name] for name in (path, _bias(path)) if name in flat}
  return kept


def unmerge(merged: Tree, covered: Mapping[str, jax.Array]) -> Tree:
  """The parameters before `merge`, bit for bit in any type.

  To take the update off again would leave the rounding of both sums; in bfloat16 that is more than
  many an adapter.

  Args:
    merged: what `merge` gave.
    covered: what `covered` gave for the same parameters and adapters.

  Raises:
    ValueError: they are not of one model.
  """
  flat = matrix.flatten(merged)
  for path, kept in covered.items():
    if path not in flat:
      raise ValueError(f"{path!r} was covered and is not in the model{tree.nearest(path, flat)}")
    if (flat[path].shape, flat[path].dtype) != (kept.shape, kept.dtype):
      raise ValueError(
        f"{path!r} is {flat[path].dtype} {flat[path].shape} and was {kept.dtype} {kept.shape}"
      )
  return tree.unflatten({**flat, **covered})


def require_mergeable(adapters: Tree) -> None:
  """Raises ValueError if there is an adapter whose method is no change of a kernel."""
  for path, adapter in sites(adapters):
    if not adapter.mergeable:
      raise ValueError(
        f"the {type(adapter).__name__} at {path!r} is no change of a kernel and cannot be merged"
      )


def _bias(path: str) -> str:
  """Where the bias beside a kernel would be."""
  return f"{path.rpartition('/')[0]}/bias"
