"""Kernels that train on the grid that they are to be held on (quantization-aware training)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core import matrix, tree
from research.core.matrix import Matrix, is_matrix
from research.core.products import outer
from research.quant import integer, policy, qarray
from research.quant.mixed import Mixed
from research.quant.qarray import QArray, quantize, straight_through
from research.quant.scheme import Scheme

Tree = Any


@struct.dataclass
class Trained(Matrix):
  """Numbers that act rounded, and learn as if they were not (straight through).

  Bengio et al. 2013, arXiv:1308.3432. Scales are of the numbers as they are, and no gradient flows
  through them; nothing is clipped, so that none is lost. `held` is what acts, to the bit.

  inputs: as of `QArray`, where the scheme has a range of activations: nothing that learns, and no
    number until it was measured (`measured`); None elsewhere.
  """

  values: jax.Array
  scheme: Scheme = struct.field(pytree_node=False)
  axis: int = struct.field(pytree_node=False, default=-2)
  inputs: jax.Array | None = None

  @property
  def shape(self) -> tuple[int, ...]:
    """See `Matrix`."""
    return self.values.shape

  @property
  def dtype(self) -> Any:
    """See `Matrix`."""
    return self.values.dtype

  def held(self) -> QArray:
    """The numbers as they act."""
    return quantize(self.values, self.scheme, self.axis).replace(inputs=self.inputs)

  def astype(self, dtype: Any) -> jax.Array:
    """See `Matrix`; as they act, straight through."""
    return _through(self.values, self.scheme, self.axis).astype(dtype)

  def product(self, x: jax.Array) -> jax.Array:
    """See `Matrix`."""
    return _product(x, self)

  def rows(self, ids: jax.Array) -> jax.Array:
    """See `Matrix`."""
    taken = jnp.take(self.values, ids, axis=0)
    if self.scheme.scales == "double":  # blocks of those scales are of several rows
      return straight_through(taken, jax.lax.stop_gradient(self.held().rows(ids)))
    return _through(taken, self.scheme, self.axis)


def _through(values, scheme, axis):
  rounded = quantize(jax.lax.stop_gradient(values), scheme, axis).astype(values.dtype)
  return straight_through(values, jax.lax.stop_gradient(rounded))


@jax.custom_vjp
def _product(x, kernel):
  return kernel.held().product(x)


def _forward(x, kernel):
  return _product(x, kernel), (x, kernel)


def _backward(residuals, g):
  x, kernel = residuals
  held = kernel.held()
  dx = qarray.backward(g, held, x.dtype)
  flat, dflat = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
  if kernel.scheme.activations and not kernel.scheme.outliers:
    codes, scale = qarray.of_inputs(flat, kernel.inputs)
    if kernel.scheme.gradients:
      # Rows are what is summed over: a scale of theirs goes to the other side, before that is
      # rounded, a column at a time.
      found, theirs = integer.rows_at_random((dflat * scale).T)
      dvalues = (integer.matmul(found, codes, (1, 0)) * theirs).T
    else:
      dvalues = outer((codes * scale).astype(x.dtype), dflat.astype(x.dtype))
  else:
    dvalues = outer(flat, dflat.astype(x.dtype))
  dvalues = dvalues if kernel.axis == -2 else dvalues.T
  inputs = jax.tree.map(jnp.zeros_like, kernel.inputs)
  return dx, kernel.replace(values=dvalues.astype(kernel.dtype), inputs=inputs)


_product.defvjp(_forward, _backward)


def train(params: Tree, rules: policy.Rules) -> Tree:
  """`params` with a `Trained` wherever a rule says so.

  Scales of activations that have a range are to be `measured` before anything is computed.

  Args: see `quant.quantize`.

  Raises:
    ValueError: as that, or layers of a stack have several schemes.
  """
  flat = matrix.flatten(params)
  for path, scheme in policy.schemes(rules, params).items():
    if not isinstance(scheme, Scheme):
      raise ValueError(f"{path!r} trains on a grid, and layers of it differ; give all one scheme")
    policy.require_finite(path, flat[path])
    inputs = jnp.full(flat[path].shape[:-2], jnp.nan) if scheme.is_static else None
    flat[path] = Trained(flat[path], scheme, policy.axis_of(path), inputs)
  return tree.unflatten(flat)


def ranged(params: Tree) -> dict[str, Trained]:
  """By path, every `Trained` in `params` whose activations have one scale."""
  flat = matrix.flatten(params)
  return {
    p: leaf for p, leaf in flat.items() if isinstance(leaf, Trained) and leaf.scheme.is_static
  }


def measured(params: Tree, scales: Mapping[str, jax.Array | None]) -> Tree:
  """`params` with scales of activations, by path of a `Trained`; None: each row has its own."""
  flat = matrix.flatten(params)
  return tree.unflatten(flat | {p: flat[p].replace(inputs=scale) for p, scale in scales.items()})


def free(params: Tree) -> Tree:
  """`params` with the numbers of every `Trained` as they are, and not as they act."""
  return jax.tree.map(
    lambda node: node.values if isinstance(node, Trained) else node, params, is_leaf=is_matrix
  )


def trains_rounded(params: Tree) -> bool:
  """Whether there is a `Trained` in `params`."""
  return any(isinstance(leaf, Trained) for leaf in matrix.flatten(params).values())


def hold(params: Tree) -> Tree:
  """`params` with what acted, in few bits: a `QArray` for every `Trained`, and trained scales."""

  def held(node):
    if isinstance(node, Mixed):
      return Mixed(tuple(held(part) for part in node.each))
    return node.held() if isinstance(node, (Trained, QArray)) else node

  return jax.tree.map(held, params, is_leaf=is_matrix)
