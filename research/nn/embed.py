"""Lookup tables of tokens and positions."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.matrix import is_matrix, rows
from research.core.products import matmul, outer_of_rows
from research.core.sharding import FREE, constrain
from research.nn.tap import tap


class Embed(nn.Module):
  """Rows of a table: ids `[B, S]` -> `[B, S, D]` in `dtype`."""

  rows: int
  features: int
  dtype: jnp.dtype

  def setup(self):
    table: Any = self.get_variable("params", "embedding")
    if not is_matrix(table):
      table = self.param("embedding", nn.initializers.normal(0.02), (self.rows, self.features))
    self.embedding = table

  def __call__(self, ids: jax.Array) -> jax.Array:
    looked_up = rows(_whole_rows(self.embedding), ids).astype(self.dtype)
    looked_up = tap(self, "embedding", looked_up, ids=ids, table=self.embedding)
    return tap(self, "prompt", looked_up, ids=ids)

  def attend(self, x: jax.Array) -> jax.Array:
    """`[..., D]` -> float32 logits `[..., rows]` against the table's rows (tied head)."""
    table = _whole_rows(self.embedding)
    logits = table.product(x) if is_matrix(table) else _attend(x, table)
    return tap(self, "embedding", logits, x=x, table=table)


def _whole_rows(table):
  """A table that is split by features, gathered; by rows it stays as it is."""
  return table if is_matrix(table) else constrain(table, FREE, None)


@jax.custom_vjp
def _attend(x, table):
  return matmul(x, table.astype(x.dtype), (x.ndim - 1, 1))


def _forward(x, table):
  return _attend(x, table), (x, table)


def _backward(residuals, g):
  x, table = residuals
  g = g.astype(x.dtype)
  dx = matmul(g, table.astype(x.dtype), (g.ndim - 1, 0)).astype(x.dtype)
  dtable = outer_of_rows(g, x).astype(table.dtype)
  return dx, dtable


_attend.defvjp(_forward, _backward)
