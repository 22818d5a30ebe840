"""Self-consistency: the answer that most chains of thought come to.

Wang et al. 2022, arXiv:2203.11171, section 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from research.core import config
from research.generation import checks
from research.reasoning import judges
from research.reasoning.outcome import Outcome, Reader, Sample
from research.reasoning.prompts import Ask
from research.reasoning.session import Session


def elect(samples: Sequence[Sample], weights: Sequence[float] | None = None) -> int:
  """The number of the first sample with the value that has most votes; 0 if nobody votes.

  A sample in which nothing is read has no vote. One that was cut off, in which the last number may
  be any of the chain's, has one only where no finished sample has. Of values with equally many
  votes the one that was written first wins.

  Args:
    weights: of each sample's vote, not negative; by default 1.
  """
  voters = [i for i, each in enumerate(samples) if each.value is not None]
  voters = [i for i in voters if samples[i].finished] or voters
  votes: dict[Any, float] = {}
  first: dict[Any, int] = {}
  for i in voters:
    value = samples[i].value
    votes[value] = votes.get(value, 0.0) + (1.0 if weights is None else weights[i])
    first.setdefault(value, i)
  return first[max(votes, key=lambda value: votes[value])] if votes else 0


def agreement(samples: Sequence[Sample], chosen: int) -> float:
  """The share of all samples, read or not, whose value is that of the chosen one; 0 if it has none.

  Which is how sure the vote is: accuracy goes with it (Wang et al.).
  """
  value = samples[chosen].value
  return 0.0 if value is None else sum(each.value == value for each in samples) / len(samples)


@dataclasses.dataclass(frozen=True)
class SelfConsistency:
  """A vote among `samples` chains of thought.

  samples: of a problem, drawn.
  weights: a section of `judges.JUDGES`, by which votes weigh; by default all weigh the same.
  """

  samples: int = 8
  weights: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    checks.positive(samples=self.samples)
    if self.weights:
      config.call(judges.JUDGES, self.weights)

  @property
  def draws(self) -> int:
    """Completions of one prompt."""
    return self.samples

  def __call__(self, session: Session, asks: Sequence[Ask], reader: Reader) -> list[Outcome]:
    judge = judges.build(self.weights) if self.weights else None
    found = session.answers(asks, reader, samples=self.samples)
    weights: list[Any] = [None] * len(found)
    if judge:
      weights = judges.of_samples(session, judge, asks, found)
    outcomes = []
    for i, (own, weighed) in enumerate(zip(found, weights, strict=True)):
      chosen = elect(own, weighed)
      trace = {"chosen": chosen} | ({"weights": weighed} if weighed else {})
      outcomes.append(Outcome(own[chosen], session.costs[i], own, agreement(own, chosen), trace))
    return outcomes
