"""Adapters that begin by what their projections read of a run's first batches (`peft.eva`)."""

from __future__ import annotations

from typing import Any

import jax

from research import peft
from research.core.moments import Moments
from research.loop import first


def begun(model: Any, variables: Any, batches: Any, mesh: jax.sharding.Mesh) -> Any:
  """The adapters of `variables`, with those begun that wait for batches.

  A run that goes on does the same again, from the same batches.

  Args: see `first.read`.

  Raises:
    ValueError: as `first.read`.
  """
  adapters = variables["adapters"]
  pending = peft.waiting(adapters)
  if not pending:
    return adapters
  count = max(node.eva.batches for node in pending.values() if node.eva)
  acting = peft.materialize(variables)
  measured = first.read(model, acting, pending, batches, count, mesh, Moments.none)
  return peft.begin(adapters, measured)
