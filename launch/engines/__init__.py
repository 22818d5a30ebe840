"""Where runs are run: each engine starts runs and tells how they ended; `driver` does the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from launch.runs import Attempt, Run


class Engine(Protocol):
  """What a driver needs of an engine.

  Attributes:
    at_once: how many runs it is given at a time; None: all there are, and it queues them itself.
    poll_seconds: how long to leave it alone between two questions.
  """

  at_once: int | None
  poll_seconds: float

  def start(self, runs: Sequence[Run]) -> None:
    """Starts runs, or has them wait for their turn."""

  def ended(self) -> list[tuple[Run, Attempt]]:
    """Those that ended since it was last asked; it does not wait."""

  def stop(self, signum: int) -> None:
    """Asks all that runs to save and leave; they are among `ended` when they have."""

  def kill(self) -> None:
    """Ends all that runs at once."""

  def close(self) -> None:
    """Frees what the engine holds."""
