"""How far an evaluator is, on a terminal."""

from __future__ import annotations

import jax
import tqdm


def bar(total: int | None, label: str, unit: str) -> tqdm.tqdm:
  """A bar of `total` units, or of nobody knows how many, that leaves nothing behind.

  Of several processes, the first shows it.
  """
  silent = jax.process_index() > 0
  return tqdm.tqdm(total=total, desc=label, unit=unit, leave=False, disable=silent)
