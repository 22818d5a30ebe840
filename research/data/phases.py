"""Batches of a run whose data change from phase to phase (see `curriculum`).

In each phase there is a planner with the phase's settings. Where a phase draws from the rows of the
one before, it goes on in their order; where others are added, a new order over all of them begins.
The last window of a phase is planned of no more examples than its steps take, so that the next one
goes on behind them: what is lost between two phases is at most the rest of a document that was
split, and the few documents of rows that packing left over.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import grain

from research.data import curriculum as curriculum_lib
from research.data.curriculum import Curriculum
from research.data.examples import Example
from research.data.windows import Batch, Place, Planner


class PhasedIterator(grain.DatasetIterator):
  """Endless batches, those of the last phase beyond the run's end.

  Its state is the phase, how many rows of each part the ones before have drawn (`offsets`), how
  many rows of batches the phase had before the window, where that began, and the row in it.
  """

  def __init__(self, planners: Sequence[Planner], curriculum: Curriculum):
    """planners: of the phases, as `planners` gives them."""
    super().__init__()
    self._planners = [copy.copy(planner) for planner in planners]  # which stand somewhere
    self._first = [0, *(phase.stop for phase in curriculum.phases)]
    self._begin(0, [0] * len(planners[0].parts))

  def _begin(self, phase: int, offsets: list[int]) -> None:
    self._phase, self._offsets = phase, offsets
    self._planner = self._planners[phase]
    self._planner.begin(offsets)
    self._start, self._before, self._row = Place(), 0, 0

  def __next__(self) -> Batch:
    planner = self._planner
    last = self._phase == len(self._planners) - 1
    steps = self._first[self._phase + 1] - self._first[self._phase]
    total = None if last else steps * planner.batch_size
    rows: list[list[Example]] = []
    while need := planner.batch_size - len(rows):
      window = planner.window(self._start, most=None if total is None else total - self._before)
      taken = window.rows[self._row : self._row + need]
      rows.extend(taken)
      self._row += len(taken)
      done = self._before + self._row
      if self._row == len(window.rows) or done == total:
        self._start, self._before, self._row = window.end, done, 0
    batch = planner.batch(rows)
    if self._before == total:
      self._begin(self._phase + 1, self._next_offsets())
    return batch

  def _next_offsets(self) -> list[int]:
    now, then = self._planners[self._phase], self._planners[self._phase + 1]
    if now.order != then.order:
      return [0] * len(self._offsets)
    # Of a document that was split, the rest is left.
    return now.drawn(self._start.position + (self._start.piece > 0))

  def get_state(self) -> dict[str, Any]:
    return {
      "phase": self._phase,
      "offsets": self._offsets,
      "before": self._before,
      "position": self._start.position,
      "piece": self._start.piece,
      "row": self._row,
    }

  def set_state(self, state: dict[str, Any]) -> None:
    self._begin(state["phase"], list(state["offsets"]))
    self._start, self._before = Place(state["position"], state["piece"]), state["before"]
    self._row = state["row"]


def planners(planner: Planner, curriculum: Curriculum) -> list[Planner]:
  """The planner of each phase; where rows go by their ease, all of them are read once.

  Raises:
    ValueError: rows have no number to go by, or a phase's settings are none of these data.
  """
  orders = None
  if curriculum.by:
    orders = [
      curriculum_lib.easiest(part, curriculum.by, curriculum.descending) for part in planner.sources
    ]
  found = []
  for number, phase in enumerate(curriculum.phases):
    try:
      allowed = curriculum_lib.shares(orders, phase.share) if orders else None
      found.append(planner.of_phase(phase, allowed))
    except ValueError as error:
      raise ValueError(f"phase {number + 1} of the curriculum: {error}") from error
  return found
