"""What a text is worth: by its own likelihood, by the model's verdict, or by a reward model.

A judge is `(session, candidates) -> values`, each from 0 to 1, the larger the better.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from research import models
from research.core import config
from research.data import chat, prompts
from research.models import scored
from research.reasoning.prompts import Ask
from research.reasoning.session import Request, Session


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A text that answers a problem, or begins to: its number, how it was asked, what was written."""

  problem: int
  ask: Ask
  text: str
  log_probs: Sequence[float]


class Judge(Protocol):
  """Values texts, after `load`."""

  def load(self) -> None:
    """Reads the model that it needs beside the session's, if it does."""

  def __call__(self, session: Session, candidates: Sequence[Candidate]) -> list[float]: ...


@dataclasses.dataclass(frozen=True)
class Likelihood(Judge):
  """By the text's own tokens: the geometric mean of their probabilities, at no cost."""

  def __call__(self, session: Session, candidates: Sequence[Candidate]) -> list[float]:
    return [math.exp(sum(each.log_probs) / len(each.log_probs)) for each in candidates]


@dataclasses.dataclass(frozen=True)
class Verdict(Judge):
  """By the model's own word on it, of which it writes none: its probabilities are read.

  The model sees the problem as it is, the text as its answer, and a question. What the text is
  worth is the mean of `marks` by the probabilities of their words. With "Yes" at 1 and "No" at 0
  that is the probability of being right, as a verifier gives it (Cobbe et al. 2021,
  arXiv:2110.14168, whose own is trained for that); with "sure", "likely" and "impossible" a state's
  value (Yao et al. 2023, arXiv:2305.10601, section 3).

  marks: what each word is worth, from 0 to 1.

  Raises:
    ValueError: marks are fewer than two, or others.
  """

  question: str = "Is this answer right? Answer Yes or No."
  marks: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"Yes": 1.0, "No": 0.0})

  def __post_init__(self):
    worth = [self.marks[word] for word in self.marks]
    if len(worth) < 2 or "" in self.marks or not all(0 <= mark <= 1 for mark in worth):
      raise ValueError("marks of a verdict are two words or more, each worth 0 to 1")

  def __call__(self, session: Session, candidates: Sequence[Candidate]) -> list[float]:
    requests = [
      Request(each.problem, Ask(each.ask.problem, each.ask.problem).then(each.text, self.question))
      for each in candidates
    ]
    worth = [self.marks[word] for word in self.marks]
    return [
      sum(mark * share for mark, share in zip(worth, shares, strict=True))
      for shares in session.choose(requests, list(self.marks))
    ]


@dataclasses.dataclass(frozen=True)
class Reward(Judge):
  """By a reward model's score, `1 / (1 + exp(-score))`; it reads the problem as it is.

  model: a directory of a decoder with a score in place of its head (`research.models.scored`), with
    its own tokenizer.
  batch_size: texts at a time.
  """

  model: str
  batch_size: int = 16

  def load(self) -> None:
    """Raises:
    FileNotFoundError: there is no such model.
    ValueError: it gives no score or has no tokenizer; or there are several processes, of which each
      would have a copy that the others do not know.
    """
    if jax.process_count() > 1:
      raise ValueError("a reward model judges within a single process; take another judge")
    _load(self.model)

  def __call__(self, session: Session, candidates: Sequence[Candidate]) -> list[float]:
    """Raises ValueError if the model has not enough positions."""
    model, params, tokenizer = _load(self.model)
    rows = [_ids(tokenizer, each) for each in candidates]
    limit = model.config.max_positions
    if (longest := max(map(len, rows), default=0)) > limit:
      raise ValueError(f"{self.model} has {limit} positions, and an answer takes {longest}")
    session.charge([each.problem for each in candidates], [len(row) for row in rows])
    scores = scored.of_rows(model, {"params": params}, rows, batch_size=self.batch_size)
    return (1 / (1 + np.exp(-scores))).tolist()


@functools.lru_cache(maxsize=1)
def _load(source: str) -> tuple[Any, Any, Any]:
  model, params, tokenizer = models.load(source)
  if getattr(model.config, "head", None) != "score":
    raise ValueError(f"{source} gives no score; a reward model is of the objective 'reward'")
  if tokenizer is None:
    raise ValueError(f"{source} has no tokenizer")
  return model, params, tokenizer


def _ids(tokenizer: Any, candidate: Candidate) -> list[int]:
  """Problem and text as rows of training have them."""
  asked = candidate.ask.problem
  return chat.encode_joined(tokenizer, asked, prompts.completion(asked, candidate.text))[0]


JUDGES: dict[str, Callable[..., Judge]] = {
  "likelihood": Likelihood,
  "verdict": Verdict,
  "reward": Reward,
}


def build(section: Mapping[str, Any]) -> Judge:
  """The judge of a section, loaded: a strategy asks for it before there is anything to judge.

  Raises:
    ConfigError: an unknown name or argument.
    FileNotFoundError, ValueError: as the judge's `load`.
  """
  judge: Judge = config.call(JUDGES, section)
  judge.load()
  return judge


def of_samples(
  session: Session, judge: Judge, asks: Sequence[Ask], samples: Sequence[Sequence[Any]]
) -> list[list[float]]:
  """What each of a problem's samples is worth, of all problems at once."""
  candidates = [
    Candidate(i, ask, each.text, each.log_probs)
    for i, (ask, own) in enumerate(zip(asks, samples, strict=True))
    for each in own
  ]
  values = iter(judge(session, candidates))
  return [[next(values) for _ in own] for own in samples]
