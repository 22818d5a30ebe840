"""A reward by no known answer: how many of a prompt's answers come to the same.

N answers.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from research.evals import scorers
from research.evals.scorers import SCORERS

if TYPE_CHECKING:
  from research.loop.rewards import Answer


@dataclasses.dataclass(frozen=True)
class Consistency:
  """The share of the answers to the same prompt in which the same value is read, its own included.

  Self-consistency (Wang et al. 2022, arXiv:2203.11171) as what is learnt, as EMPO has it (Zhang et
  al. 2025, arXiv:2504.05812). 0 where nothing is read. A model can come to agree on what is wrong:
  weigh it lightly, or give it beside another reward.

  scorer: of `research.evals.scorers`, whose reading finds the values.

  Raises:
    ValueError: there is no such scorer.
  """

  scorer: str = "last_number"

  def __post_init__(self) -> None:
    scorers.require(self.scorer)

  def __call__(self, answers: Sequence[Answer]) -> np.ndarray:
    """Shares, `[N]`; all answers to a prompt are among `answers`."""
    asked = [repr(answer.prompt) for answer in answers]  # messages are no keys
    values = [SCORERS[self.scorer].read(answer.text) for answer in answers]
    among, alike = Counter(asked), Counter(zip(asked, values, strict=True))
    return np.array(
      [
        0.0 if value is None else alike[prompt, value] / among[prompt]
        for prompt, value in zip(asked, values, strict=True)
      ]
    )
