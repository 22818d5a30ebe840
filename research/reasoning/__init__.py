"""Answers that take more than one plain completion: chains, votes, judges, trees, revisions.

A problem is put by one of `PROMPTS` and answered by one of `STRATEGIES`, both chosen by sections of
a config. A strategy is `(session, asks, reader) -> outcomes`, one a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from research import generation
from research.core import config
from research.reasoning.best_of_n import BestOfN
from research.reasoning.critique import Critique
from research.reasoning.judges import JUDGES
from research.reasoning.outcome import Cost, Outcome, Reader, Sample
from research.reasoning.plain import Plain
from research.reasoning.prompts import PROMPTS, Ask
from research.reasoning.search import SEARCHES
from research.reasoning.session import Session
from research.reasoning.tree_of_thoughts import TreeOfThoughts
from research.reasoning.votes import SelfConsistency


class Strategy(Protocol):
  """A way to answer problems; `draws` is how many completions of one prompt it takes."""

  @property
  def draws(self) -> int: ...

  def __call__(self, session: Session, asks: Sequence[Ask], reader: Reader) -> list[Outcome]: ...


STRATEGIES: dict[str, Callable[..., Strategy]] = {
  "best_of_n": BestOfN,
  "critique": Critique,
  "plain": Plain,
  "self_consistency": SelfConsistency,
  "tree_of_thoughts": TreeOfThoughts,
}


def build(section: Mapping[str, Any], sampler: generation.Sampler) -> Strategy:
  """The strategy of a section: its `name` in `STRATEGIES`, and that one's arguments.

  Raises:
    ConfigError: an unknown name or argument.
    ValueError: an argument's value cannot be, or it draws several times with a sampler that always
      takes the most probable token.
  """
  strategy: Strategy = config.call(STRATEGIES, section)
  if strategy.draws > 1 and sampler.temperature == 0:
    raise ValueError(
      f"{section['name']} draws {strategy.draws} completions of a prompt, which would be equal; "
      "give a sampler with a temperature, as {'name': 'sample'}"
    )
  return strategy


__all__ = [
  "JUDGES",
  "PROMPTS",
  "SEARCHES",
  "STRATEGIES",
  "Ask",
  "Cost",
  "Outcome",
  "Reader",
  "Sample",
  "Session",
  "Strategy",
  "build",
]
