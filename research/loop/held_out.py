"""The objective's loss on rows that are held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from research.core import sharding
from research.evals import Evaluator, Result
from research.loop.step import Objective


def evaluator(
  objective: Objective, batches: Iterable[Mapping[str, np.ndarray]], mesh: jax.sharding.Mesh
) -> Evaluator:
  """An evaluator: the objective's loss and metrics over all of `batches`, by token weights.

  Its name is `held_out`; an item of its result is a batch. batches: this process's shares.
  """
  sums_of = jax.jit(
    lambda model, variables, batch: objective(model, variables, batch, None, None),
    static_argnums=0,
    out_shardings=sharding.replicated(mesh),
  )

  def evaluate(model: Any, variables: Any, tokenizer: Any) -> Result:
    del tokenizer
    records: list[dict[str, Any]] = []
    for number, batch in enumerate(batches):
      total, weight, metrics = jax.device_get(
        sums_of(model, variables, sharding.place(batch, mesh))
      )
      pairs = {**metrics, "loss": (total, weight)}
      means = {name: (name, f"{name}_weight") for name in pairs}
      record: dict[str, Any] = {"id": str(number)}
      for name, (a, b) in pairs.items():
        record |= {name: float(a), f"{name}_weight": float(b)}
      records.append(record)
    sums = {
      name: [sum(record[part] for record in records) for part in (name, weight)]
      for name, (_, weight) in means.items()
    }
    # What no batch had, such as an answer that is good, has no mean.
    figures = {name: total / weight for name, (total, weight) in sums.items() if weight}
    means = {name: pair for name, pair in means.items() if name in figures}
    return Result("held_out", figures, records, means)

  return evaluate
