"""What a strategy finds, and what that cost."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol


class Reader(Protocol):
  """How an answer is read, as `research.evals.scorers.Scorer` does it."""

  @property
  def read(self) -> Any:
    """`(text) -> value`, None if there is none; values are hashable, and equal where they agree."""

  @property
  def show(self) -> Any:
    """`(value) -> str`."""


@dataclasses.dataclass
class Cost:
  """What one problem took.

  written: tokens of all completions, the one that ends each included.
  read: tokens that were read before, or to judge: prompts, once for all of their samples that share
    a batch, virtual tokens, and given completions. Those written are not counted again.
  calls: how often the model was asked in turn; what is asked at once is one call.
  """

  written: int = 0
  read: int = 0
  calls: int = 0


@dataclasses.dataclass(frozen=True)
class Sample:
  """An answer that was written to its end.

  text: with what it was made to begin with. value: what is read in it, None for nothing.
  tokens: how many were written. log_probs: of these.
  finished: it came to an end; otherwise it was cut off.
  """

  text: str
  value: Any
  tokens: int
  log_probs: tuple[float, ...]
  finished: bool


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a strategy answers to a problem.

  answer: the text, and what is read in it.
  cost: of all that was asked about the problem.
  samples: the answers that it was chosen among, or that came before it, in the order in which they
    were written; `answer` is one of them.
  agreement: the share of `samples` whose value is that of `answer`, where there was a vote.
  trace: how it was found, fit for JSON.
  """

  answer: Sample
  cost: Cost
  samples: list[Sample]
  agreement: float | None = None
  trace: dict[str, Any] = dataclasses.field(default_factory=dict)
