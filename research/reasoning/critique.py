"""Critique and revision: the model looks for mistakes in its own answer and writes it again.

Self-Refine, Madaan et al. 2023, arXiv:2303.17651, alg. 1; the form of the requests is that of Bai
et al. 2022, arXiv:2212.08073, section 3.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from research.generation import checks
from research.reasoning.outcome import Outcome, Reader, Sample
from research.reasoning.prompts import Ask
from research.reasoning.session import Request, Session


@dataclasses.dataclass(frozen=True)
class Critique:
  """An answer, and at most `rounds` times what is wrong with it and the answer revised.

  Each round sees the problem, the last answer and its critique. The last answer counts.

  critique: asks for what is wrong. nothing: what a critique says, in whatever case, that found
    nothing, which ends the rounds; empty: nothing does. revise: asks for the answer anew.
  """

  rounds: int = 2
  critique: str = (
    "Check the answer above step by step and point out each mistake. "
    "If there is none, say only: no mistakes."
  )
  nothing: str = "no mistakes"
  revise: str = "Write the whole answer again, without these mistakes, and end with the result."

  def __post_init__(self):
    checks.positive(rounds=self.rounds)

  @property
  def draws(self) -> int:
    """Completions of one prompt."""
    return 1

  def __call__(self, session: Session, asks: Sequence[Ask], reader: Reader) -> list[Outcome]:
    answers: list[list[Sample]] = session.answers(asks, reader)
    told: list[list[dict[str, Any]]] = [[] for _ in asks]
    going = list(range(len(asks)))
    for turn in range(self.rounds):
      about = [asks[i].then(answers[i][-1].text, self.critique) for i in going]
      found = session.write(_requests(going, about), stage=f"critique/{turn}")
      wrong, revised = [], []
      for i, ask, (critique,) in zip(going, about, found, strict=True):
        faulty, cut = not self._found_nothing(critique.text), int(not critique.finished)
        told[i].append({"critique": critique.text, "found": faulty, "unfinished": cut})
        if faulty:
          wrong.append(i)
          revised.append(ask.then(critique.text, self.revise))
      again = session.ends(_requests(wrong, revised), reader, stage=f"revise/{turn}")
      for i, new in zip(wrong, again, strict=True):
        answers[i] += new
      going = wrong
    requests = {"critique": self.critique, "revise": self.revise}  # `data.critiques` asks again
    return [
      Outcome(own[-1], session.costs[i], own, trace={"requests": requests, "rounds": told[i]})
      for i, own in enumerate(answers)
    ]

  def _found_nothing(self, critique: str) -> bool:
    return bool(self.nothing) and self.nothing.lower() in critique.lower()


def _requests(problems: Sequence[int], asks: Sequence[Ask]) -> list[Request]:
  return [Request(i, ask) for i, ask in zip(problems, asks, strict=True)]
