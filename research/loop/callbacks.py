"""The seam between the loop and what a run wants done at its turning points."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research import peft
from research.core import config as config_lib
from research.core import tree
from research.evals import Result
from research.loop.problem import Problem
from research.loop.state import TrainState
from research.models.unrolled import restack


@dataclasses.dataclass
class Context:
  """Where a run stands; the loop keeps `state` and `step` current.

  evaluations: `(step, {"eval/NAME/METRIC": figure})` of all evaluations so far, those before a
    resume included; the results themselves are in `evaluations/STEP.json`.
  say: prints a line, above the progress bar if there is one.
  """

  config: config_lib.Config
  directory: Path
  problem: Problem
  total_steps: int
  step: int
  state: TrainState
  frozen: Any
  evaluations: list[tuple[int, Mapping[str, float]]]
  say: Callable[[str], None]

  @property
  def variables(self) -> dict[str, Any]:
    """`{"params": ..., "adapters": ...}` as models take them now; valid until the next step.

    Where the step holds an array a layer, stacks are made at each call.
    """
    return peft.materialize(restack(tree.combine(self.state.trainable, self.frozen)))


class Callback:
  """Does nothing at each turning point; override what you need."""

  def on_start(self, context: Context) -> None:
    """Before the first step of this process; `context.step` is above 0 in a resumed run."""

  def on_evaluation(self, context: Context, results: Sequence[Result]) -> None:
    """After the evaluators have run at `context.step`."""

  def on_end(self, context: Context) -> None:
    """After the last step and evaluation. A run that was interrupted gets here when resumed."""
