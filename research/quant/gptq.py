"""GPTQ: rounding an input at a time, the others taking up the error (arXiv:2210.17323).

Ours are kernels `[in, out]`, so that the paper's columns are our rows.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from research.core.products import matmul
from research.quant import codebooks
from research.quant.qarray import DoubleScales, QArray, encode, grid
from research.quant.scheme import INTEGERS, Scheme

_BLOCK = 128  # rows whose errors are handed on to the rest together


@dataclasses.dataclass(frozen=True)
class GPTQ:
  """How to round by what a projection reads.

  damping: what is added to the diagonal of the products, as a share of its mean.
  act_order: inputs are rounded in the order of their size, the largest first.
  static_groups: with `act_order`, groups stay of successive inputs, and their scales are taken
    before the first is rounded; otherwise groups are of inputs that are rounded in succession, and
    the array has an `order`.
  passes: how often all numbers are gone through once more afterwards, each put where the error is
    least while the others stay (coordinate descent, as in QuantEase, arXiv:2309.01885, section 3).
  """

  damping: float = 0.01
  act_order: bool = False
  static_groups: bool = False
  passes: int = 0

  def round(self, kernel: jax.Array, products: Any, scheme: Scheme) -> QArray:
    """`kernel [in, out]` rounded so that what it makes of the inputs seen changes least.

    Args:
      kernel: finite.
      products: `[in, in]`, the sum of `x^T x` over rows that it reads.
      scheme: of integers or of a table (NF4, FP4).

    Raises:
      ValueError: another scheme, or inputs that are not finite.
    """
    if scheme.kind not in (*INTEGERS, *codebooks.CODEBOOKS):
      raise ValueError(f"GPTQ rounds to integers and to the numbers of tables, not to {scheme}")
    damped, order, dead = self._damped(np.asarray(products, np.float64))
    factor = _factor(damped[np.ix_(order, order)])
    values = jnp.asarray(kernel, jnp.float32) * (1 - dead[:, None])
    size, inputs = scheme.group, len(order)
    grouped = size > 0
    static = not grouped or not self.act_order or self.static_groups
    scale = zero = None
    # How much an input's error counts, before others take it up.
    importance = jnp.asarray(np.diagonal(np.asarray(products)), jnp.float32)
    if static and (self.act_order or not grouped):
      scale, zero = grid(values, scheme, importance=importance)
    each = jnp.arange(inputs) // (size if grouped else inputs)  # the group of each input
    if scale is None:
      rounded, scale, zero = _round_with_groups(values[order], factor, scheme, _block(inputs, size))
    else:
      ahead = tuple(None if x is None else _of_inputs(x, each)[order] for x in (scale, zero))
      rounded = _round(values[order], factor, *ahead, scheme, _block(inputs, 1))
    back = np.argsort(order)
    rounded = rounded[back]
    if self.passes:
      own = each if static else each[back]
      rows = tuple(None if x is None else _of_inputs(x, own) for x in (scale, zero))
      goal = jnp.asarray(damped, jnp.float32)
      for _ in range(self.passes):
        rounded = _descend(rounded, values, goal, *rows, scheme, _block(inputs, 1))
    kind, groups = str(kernel.dtype), None if static else jnp.asarray(each[back], jnp.int32)
    found = encode(rounded, scale, zero, scheme, kind=kind, order=groups)
    if scheme.scales == "double":
      # As `quantize`: codes go by the scales as they were.
      return found.replace(scale=DoubleScales.of(scale, -2))  # type: ignore[attr-defined]
    return found

  def _damped(self, products):
    """The products with more on their diagonal; the order of rounding; dead inputs."""
    if not np.isfinite(products).all():
      raise ValueError("GPTQ was given products of inputs that are not finite")
    diagonal = np.diagonal(products).copy()
    dead = diagonal == 0
    diagonal[dead] = 1
    order = np.argsort(-diagonal, kind="stable") if self.act_order else np.arange(len(diagonal))
    damped = products.copy()
    np.fill_diagonal(damped, diagonal + self.damping * diagonal.mean())
    return damped, order, jnp.asarray(dead, jnp.float32)


def _factor(products):
  """The upper Cholesky factor of the inverse."""
  lower = scipy.linalg.cholesky(products, lower=True)
  inverse = scipy.linalg.cho_solve((lower, True), np.eye(len(products)))
  return jnp.asarray(scipy.linalg.cholesky(inverse, lower=False), jnp.float32)


def _of_inputs(of_groups, each):
  """`[groups, out]`, or `[1, 1]` of a whole matrix, for each input."""
  return of_groups[each if of_groups.shape[0] > 1 else jnp.zeros_like(each)]


def _block(inputs: int, group: int) -> int:
  """Rows of a block: at most 128 if groups allow, whole groups of them, a divisor of all."""
  unit = max(group, 1)
  return max(
    (b for b in range(unit, inputs + 1, unit) if inputs % b == 0 and b <= max(_BLOCK, unit)),
    default=inputs,
  )


@partial(jax.jit, static_argnames=("scheme", "block"))
def _round(values, factor, scale, zero, scheme, block):
  """All rows on grids that are given, a row each: what they stand for afterwards."""

  def of_block(values, start):
    part, upper = (jax.lax.dynamic_slice_in_dim(x, start, block) for x in (values, factor))
    grids = [
      None if x is None else jax.lax.dynamic_slice_in_dim(x, start, block) for x in (scale, zero)
    ]
    inner = jax.lax.dynamic_slice_in_dim(upper, start, block, axis=1)
    part, errors = _rows(part, inner, *grids, scheme)
    return _hand_on(values, part, errors, upper, start, block), None

  values, _ = jax.lax.scan(of_block, values, jnp.arange(0, values.shape[0], block))
  return values


@partial(jax.jit, static_argnames=("scheme", "block"))
def _round_with_groups(values, factor, scheme, block):
  """Groups of successive rows, whose grids are taken when their turn comes; the grids, too."""
  size = scheme.group

  def of_block(values, start):
    part, upper = (jax.lax.dynamic_slice_in_dim(x, start, block) for x in (values, factor))
    inner = jax.lax.dynamic_slice_in_dim(upper, start, block, axis=1)
    scales, zeros, errors = [], [], []
    for first in range(0, block, size):
      of = slice(first, first + size)
      scale, zero = grid(part[of], scheme)
      rounded, error = _rows(part[of], inner[of, of], scale, zero, scheme)
      later = jnp.arange(block)[:, None] >= first + size
      part = part - jnp.where(later, matmul(inner[of], error, (0, 0)), 0)
      part = part.at[of].set(rounded)
      scales.append(scale)
      zeros.append(zero)
      errors.append(error)
    values = _hand_on(values, part, jnp.concatenate(errors), upper, start, block)
    zero = None if scheme.symmetric else jnp.concatenate(zeros)
    return values, (jnp.concatenate(scales), zero)

  values, grids = jax.lax.scan(of_block, values, jnp.arange(0, values.shape[0], block))
  return values, *(None if g is None else g.reshape(-1, g.shape[-1]) for g in grids)


def _rows(part, upper, scale, zero, scheme):
  """Rows one after the other, each handing its error on: what they stand for, and the errors.

  `scale` and `zero` are `[rows or 1, out or 1]`.
  """
  nearest = _nearest(scale, zero, scheme, part.shape)

  def row(i, carry):
    part, errors = carry
    error = (part[i] - nearest(part[i], i)) / upper[i, i]
    # Of the factor the numbers left of the diagonal are 0, and its own makes the row the rounded.
    return part - upper[i][:, None] * error, errors.at[i].set(error)

  return jax.lax.fori_loop(0, part.shape[0], row, (part, jnp.zeros_like(part)))


def _nearest(scale, zero, scheme, shape):
  """`(numbers [out], row) -> the nearest [out]` of the row's grid."""
  full = jnp.broadcast_to(scale.astype(jnp.float32), shape)
  offset = jnp.zeros_like(full) if zero is None else jnp.broadcast_to(zero, shape)
  inverse = jnp.where(full == 0, 0, 1 / jnp.where(full == 0, 1, full))

  def of_row(numbers, i):
    units = numbers * inverse[i]
    if scheme.kind not in INTEGERS:
      return codebooks.decode(scheme.kind, codebooks.encode(scheme.kind, units)) * full[i]
    least, most = scheme.levels
    return (jnp.clip(jnp.round(units) + offset[i], least, most) - offset[i]) * full[i]

  return of_row


@partial(jax.jit, static_argnames=("scheme", "block"))
def _descend(rounded, values, products, scale, zero, scheme, block):
  """One pass over all rows, each as the others stand: what they stand for afterwards.

  `rounded` and `values` are `[in, out]`, before and after rounding; the error is `e^T H e` of their
  difference e, H the `products`, and half its slopes `H e` are kept up to date.
  """

  def of_block(carry, start):
    rounded, slopes = carry
    part, slope, beside, *grids = (
      None if x is None else jax.lax.dynamic_slice_in_dim(x, start, block)
      for x in (rounded, slopes, products, scale, zero)
    )
    inner = jax.lax.dynamic_slice_in_dim(beside, start, block, axis=1)
    nearest = _nearest(*grids, scheme, part.shape)

    def row(i, carry):
      part, slope = carry
      best = nearest(part[i] - slope[i] / inner[i, i], i)
      return part.at[i].set(best), slope + inner[i][:, None] * (best - part[i])

    moved, _ = jax.lax.fori_loop(0, block, row, (part, slope))
    slopes = slopes + matmul(beside, moved - part, (0, 0))
    return (jax.lax.dynamic_update_slice_in_dim(rounded, moved, start, axis=0), slopes), None

  begun = rounded, matmul(products, rounded - values, (1, 0))
  (rounded, _), _ = jax.lax.scan(of_block, begun, jnp.arange(0, rounded.shape[0], block))
  return rounded


def _hand_on(values, part, errors, upper, start, block):
  """All rows after a block was rounded: the block's, and later ones less its errors."""
  later = jnp.arange(values.shape[0])[:, None] >= start + block
  values = values - jnp.where(later, matmul(upper, errors, (0, 0)), 0)
  return jax.lax.dynamic_update_slice_in_dim(values, part, start, axis=0)
