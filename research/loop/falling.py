"""Whether answers that were chosen become less likely, which the loss of a preference allows."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Mapping

_STEPS = 20  # whose mean counts
_ERRORS = 3.0  # standard errors that a fall is beyond, or it may be chance


class Falling:
  """Says once if chosen answers fall: against the reference or, without one, the first steps.

  DPO raises the margin of two answers, which both may lose (Pal et al. 2024, arXiv:2402.13228). The
  loss goes down meanwhile, so that nothing else tells.
  """

  def __init__(self) -> None:
    self._first: list[float] = []
    self._last: collections.deque[float] = collections.deque(maxlen=_STEPS)
    self._said = False

  def __call__(self, means: Mapping[str, float]) -> str | None:
    """The note, after the step with these metrics from which on it is due; once.

    Args:
      means: of a step; read is `logps/chosen_change` or, without a reference, `logps/chosen`.
    """
    change = means.get("logps/chosen_change")
    value = means.get("logps/chosen") if change is None else change
    if value is None or not math.isfinite(value) or self._said:
      return None
    if change is None and len(self._first) < _STEPS:
      self._first.append(value)
      return None
    self._last.append(value)
    if len(self._last) < _STEPS:
      return None
    before = statistics.fmean(self._first) if self._first else 0.0
    spread = sum(statistics.variance(each) for each in (self._first, self._last) if each)
    now = statistics.fmean(self._last)
    if before - now <= _ERRORS * math.sqrt(spread / _STEPS):
      return None
    self._said = True
    if change is None:
      told = f"from {before:.2f} to {now:.2f} nats"
    else:
      told = f"by {-now:.2f} nats from the reference's"
    return (
      f"the log-probability of chosen answers has fallen {told} (mean of {_STEPS} steps): rejected"
      " ones may fall further, and the loss with them; a term of 'sft', a lower learning rate or a"
      " higher beta holds it"
    )
