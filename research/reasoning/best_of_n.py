"""Best of n: of several answers the one that a judge finds best."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from research.core import config
from research.generation import checks
from research.reasoning import judges
from research.reasoning.outcome import Outcome, Reader
from research.reasoning.prompts import Ask
from research.reasoning.session import Session


@dataclasses.dataclass(frozen=True)
class BestOfN:
  """The best of `samples` answers (Cobbe et al. 2021, arXiv:2110.14168, section 4).

  samples: of a problem, drawn.
  judge: a section of `judges.JUDGES`. Of answers that are worth the same the first is taken.
  """

  samples: int = 8
  judge: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "verdict"})

  def __post_init__(self):
    checks.positive(samples=self.samples)
    config.call(judges.JUDGES, self.judge)

  @property
  def draws(self) -> int:
    """Completions of one prompt."""
    return self.samples

  def __call__(self, session: Session, asks: Sequence[Ask], reader: Reader) -> list[Outcome]:
    judge = judges.build(self.judge)
    found = session.answers(asks, reader, samples=self.samples)
    outcomes = []
    for i, values in enumerate(judges.of_samples(session, judge, asks, found)):
      chosen = values.index(max(values))
      trace = {"chosen": chosen, "values": values}
      outcomes.append(Outcome(found[i][chosen], session.costs[i], found[i], trace=trace))
    return outcomes
