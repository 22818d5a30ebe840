"""What projections read of the next batches of a run, whose data stay where they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax

from research import models
from research.core import sharding


def read(
  model: Any,
  variables: Any,
  paths: Iterable[str],
  batches: Any,
  count: int,
  mesh: jax.sharding.Mesh,
  observer: Callable[[tuple[int, ...], int], Any],
) -> dict[str, Any]:
  """What observers have seen of `count` batches; see `research.models.watched`.

  On a mesh of several devices the model is spread for the time that it takes, so that each process
  reads its own rows and all get the same sums.

  Args:
    batches: this process's share of each (`loop.problem.Batches`).

  Raises:
    ValueError: the model is an encoder-decoder, or the mesh does not divide a parameter.
  """
  stand = batches.get_state()
  if mesh.size == 1:
    ahead = (next(batches) for _ in range(count))
    found = models.watched(model, variables, paths, ahead, observer)
  else:
    with jax.set_mesh(mesh):
      spread = jax.device_put(variables, sharding.shardings(mesh, variables))
      placed = (sharding.place(next(batches), mesh) for _ in range(count))
      found = sharding.fetched(models.watched(model, spread, paths, placed, observer))
  batches.set_state(stand)
  return found
