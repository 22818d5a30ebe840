"""One answer a problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from research.reasoning.outcome import Outcome, Reader
from research.reasoning.prompts import Ask
from research.reasoning.session import Session


@dataclasses.dataclass(frozen=True)
class Plain:
  """One completion, whatever is asked: with `chain_of_thought` prompts a chain of thought."""

  @property
  def draws(self) -> int:
    """Completions of one prompt."""
    return 1

  def __call__(self, session: Session, asks: Sequence[Ask], reader: Reader) -> list[Outcome]:
    found = session.answers(asks, reader)
    return [Outcome(own[0], session.costs[i], own) for i, own in enumerate(found)]
