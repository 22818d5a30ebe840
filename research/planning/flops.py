"""Floating-point operations of a program's products, recomputation and all, by its jaxpr."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.interpreters import partial_eval


def count(jaxpr: Any) -> tuple[float, float]:
  """FLOPs of the matrix products of a closed jaxpr, over all devices: XLA's, and those of kernels.

  What nobody needs is left out. A loop counts as often as it runs where that is known (`scan`), and
  once where it is not; of branches the dearest one counts. A kernel counts whole for each step of
  its grid, those that it skips included: for causal attention twice what it does.
  """
  live, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
  products, kernels = _count(live)
  return float(products), float(kernels)


def _count(jaxpr: Any) -> np.ndarray:
  """`[2]`: outside of kernels and within."""
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  total = np.zeros(2)
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    if name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      left = eqn.invars[0].aval.shape
      inner = math.prod(left[axis] for axis in contracted)
      total[0] += 2.0 * math.prod(eqn.outvars[0].aval.shape) * inner
    elif name.startswith("ragged_dot"):
      # Each row meets one group's matrix.
      rows, inner = eqn.invars[0].aval.shape[-2:]
      total[0] += 2.0 * rows * inner * eqn.invars[1].aval.shape[-1]
    elif name == "cond":
      total += max(map(_count, eqn.params["branches"]), key=np.sum)
    else:
      found = _times(eqn) * sum(map(_count, _within(eqn)), np.zeros(2))
      total += [0.0, found.sum()] if name == "pallas_call" else found
  return total


def _times(eqn: Any) -> int:
  """How often what is within it runs."""
  if eqn.primitive.name == "scan":
    return eqn.params["length"]
  if eqn.primitive.name == "shard_map":
    return math.prod(eqn.params["mesh"].shape.values())
  if eqn.primitive.name == "pallas_call":
    return math.prod(eqn.params["grid_mapping"].grid)
  return 1


def _within(eqn: Any) -> Iterator[Any]:
  for value in eqn.params.values():
    for one in value if isinstance(value, (tuple, list)) else (value,):
      if hasattr(one, "eqns") or hasattr(getattr(one, "jaxpr", None), "eqns"):
        yield one
