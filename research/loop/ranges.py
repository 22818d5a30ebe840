"""Scales of rounded activations, by what projections that train on a grid read (`quant.ranges`).

They are in the trainable tree, so that checkpoints have them, and have no gradient.
"""

from __future__ import annotations

from typing import Any

import jax

from research import quant
from research.core import tree
from research.loop import first
from research.quant.ranges import Magnitudes


def found(
  model: Any, variables: Any, batches: Any, count: int, mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
  """By path of a kernel the scales `[L]` of `count` batches, read while each row has its own.

  Args: see `first.read`.

  Raises:
    ValueError: as `first.read`; a kernel is of experts; activations are not finite.
  """
  pending = quant.ranged(variables["params"])
  rows = quant.measured(variables["params"], dict.fromkeys(pending))
  acting = {**variables, "params": rows}
  seen = first.read(
    model, acting, pending, batches, count, mesh, lambda stack, inputs: Magnitudes.none(stack)
  )
  return {path: seen[path].scale(kernel.scheme) for path, kernel in pending.items()}


def placed(trainable: Any, scales: dict[str, jax.Array]) -> Any:
  """`trainable` with these `scales`, where those before them lay."""
  new = {f"params/{path}/inputs": scale for path, scale in scales.items()}

  def changed(path: str, leaf: Any) -> Any:
    return jax.device_put(new[path], leaf.sharding) if path in new else leaf

  return tree.map_with_path(changed, trainable)
