"""A trace of some steps of a run, which TensorBoard (XProf) and Perfetto read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import jax

from research.core.config import ConfigError
from research.loop.callbacks import Context


class Profile:
  """Traces the steps from the first to the last of a pair, as metrics.jsonl counts them.

  The trace is in `profile/` of the process's directory. A run that goes on between these steps
  traces those that are left, and one that goes on behind them none.
  """

  def __init__(self, steps: Sequence[int], total_steps: int):
    """Args:
      steps: the pair, or nothing, by which nothing is traced.
      total_steps: of the run.

    Raises:
      ConfigError: that is no pair of the run's steps, in order.
    """
    pair = tuple(steps)
    if pair and not (
      len(pair) == 2
      and all(type(step) is int for step in pair)
      and 1 <= pair[0] <= pair[1] <= total_steps
    ):
      raise ConfigError(
        f"config.log.profile is {pair}; give the first and the last of steps 1 to {total_steps}"
        " that are traced, or ()"
      )
    self._steps = range(pair[0], pair[1] + 1) if pair else range(0)
    self._tracing = False

  @contextlib.contextmanager
  def step(self, context: Context, settle: Callable[[], None]) -> Iterator[None]:
    """Around the step that follows `context.step`.

    Args:
      settle: waits for the steps before, so that a trace holds its own steps alone and all of them.
    """
    number = context.step + 1
    if number not in self._steps:
      yield
      return
    directory = context.directory / "profile"
    if not self._tracing:
      settle()
      jax.profiler.start_trace(directory, create_perfetto_trace=True)
      self._tracing = True
    with jax.profiler.StepTraceAnnotation("train", step_num=number):
      yield
    if number == self._steps[-1]:
      settle()
      self.close()
      context.say(f"step {number}: a trace of the steps from {self._steps[0]} is in {directory}")

  def close(self) -> None:
    """Writes what was traced, if steps still are."""
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()
