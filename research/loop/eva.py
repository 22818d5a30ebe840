"""Adapters that begin by what their projections read of a run's first batches (`peft.eva`)."""

from __future__ import annotations

from typing import Any

import jax

from research import models, peft
from research.core import sharding


def begun(model: Any, variables: Any, batches: Any, mesh: jax.sharding.Mesh) -> Any:
  """The adapters of `variables`, with those begun that wait for batches; the data stay where they
  stand.

  A run that goes on does the same again, from the same batches. On a mesh of several devices the
  model is spread for the time that it takes, so that each process reads its own rows and all get
  the same sums.

  Args:
    batches: this process's share of each (`loop.problem.Batches`).

  Raises:
    ValueError: the model is an encoder-decoder, or the mesh does not divide a parameter.
  """
  adapters = variables["adapters"]
  pending = peft.waiting(adapters)
  if not pending:
    return adapters
  count = max(node.eva.batches for node in pending.values() if node.eva)
  first = batches.get_state()
  acting = peft.materialize(variables)
  if mesh.size == 1:
    measured = models.moments(model, acting, pending, (next(batches) for _ in range(count)))
  else:
    with jax.set_mesh(mesh):
      spread = jax.device_put(acting, sharding.shardings(mesh, acting))
      placed = (sharding.place(next(batches), mesh) for _ in range(count))
      measured = sharding.fetched(models.moments(model, spread, pending, placed))
  batches.set_state(first)
  return peft.begin(adapters, measured)
