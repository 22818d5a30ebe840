"""How good answers are that a policy wrote: by a known answer, by form, or by another model.

N answers, S sequence.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import generation
from research.core import config as config_lib
from research.core import sharding
from research.data import chat, prompts
from research.evals import scorers
from research.evals.scorers import SCORERS
from research.loop import subject as subjects
from research.loop.consistency import Consistency
from research.models import scored

Text = str | list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Answer:
  """What was written after a prompt.

  problem: the row of the data that asked. prompt: what of it was shown.
  text: decoded, without special tokens. length: tokens, EOS included. finished: it ends with EOS.
  """

  problem: Mapping[str, Any]
  prompt: Text
  text: str
  length: int
  finished: bool


# Answers to float `[N]`.
Reward = Callable[[Sequence[Answer]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Scorer:
  """1 for a right answer and 0 for a wrong one, by a scorer of `research.evals.scorers`.

  scorer: its name; rows have what it judges by, an `answer` mostly.
  unparsable: for an answer in which nothing can be read.
  """

  scorer: str = "last_number"
  unparsable: float = 0.0

  def __post_init__(self) -> None:
    scorers.require(self.scorer)

  def check(self, problem: Mapping[str, Any]) -> None:
    """Raises ValueError if a row lacks what answers to it are judged by."""
    SCORERS[self.scorer].check(problem)

  def __call__(self, answers: Sequence[Answer]) -> np.ndarray:
    """Raises ValueError for a row that `check` refuses."""
    found = []
    for answer in answers:
      verdict = SCORERS[self.scorer](answer.text, answer.problem)
      found.append(self.unparsable if verdict.value is None else float(verdict.correct))
    return np.array(found)


@dataclasses.dataclass(frozen=True)
class Pattern:
  """1 where a regular expression is found in the text, else 0: `"(?s)^<think>.*</think>"`."""

  regex: str

  def __post_init__(self) -> None:
    try:
      re.compile(self.regex)
    except re.error as error:
      raise ValueError(f"the regex {self.regex!r} cannot be read: {error}") from error

  def __call__(self, answers: Sequence[Answer]) -> np.ndarray:
    """See the class."""
    return np.array([float(re.search(self.regex, answer.text) is not None) for answer in answers])


@dataclasses.dataclass(frozen=True)
class Length:
  """0 up to `most - buffer` tokens, from there in a line to -1 at `most` and beyond.

  DAPO's soft punishment (Yu et al. 2025, arXiv:2503.14476, eq. 13).
  """

  most: int
  buffer: int

  def __post_init__(self) -> None:
    if not 0 < self.buffer <= self.most:
      raise ValueError(f"buffer is from 1 to most, {self.most}, and not {self.buffer}")

  def __call__(self, answers: Sequence[Answer]) -> np.ndarray:
    """See the class."""
    over = np.array([answer.length for answer in answers]) - (self.most - self.buffer)
    return -np.clip(over / self.buffer, 0.0, 1.0)


class _OfModel:
  """A reward by a model of its own, a checkpoint (`source`) or the result of a `run`."""

  def __init__(self, source: str, run: str, dtype: str):
    if bool(source) == bool(run):
      raise ValueError("give one of source, a checkpoint, and run, a run's directory")
    found = subjects.load_run(Path(run), dtype) if run else subjects.load_model(source, dtype)
    self._subject = subjects.require_one(found)

  def spread(self, mesh: jax.sharding.Mesh) -> None:
    """Puts the model on the run's devices, split as a base is that does not train."""
    places = sharding.shardings(mesh, self._subject.variables)
    self._subject.variables = jax.device_put(self._subject.variables, places)


class Scored(_OfModel):
  """The score of a reward model (the objective "reward"), laid out as it was trained.

  Args:
    source: a checkpoint with a scalar head; or
    run: the directory of a complete run.
    length: tokens of a row; longer answers lose their end.
    batch_size: answers at a time.
    dtype: of its parameters and activations.

  Raises:
    ValueError: it is none, or both are given.
  """

  def __init__(
    self,
    source: str = "",
    run: str = "",
    length: int = 1024,
    batch_size: int = 8,
    dtype: str = "bfloat16",
  ):
    super().__init__(source, run, dtype)
    if getattr(self._subject.model.config, "head", None) != "score":
      raise ValueError(
        f"{self._subject.name} has no head for scores; the objective 'reward' makes one"
      )
    self._length, self._batch_size = length, batch_size

  def __call__(self, answers: Sequence[Answer]) -> np.ndarray:
    """See the class."""
    subject = self._subject
    rows = [
      chat.encode_joined(subject.tokenizer, a.prompt, prompts.completion(a.prompt, a.text))[0]
      for a in answers
    ]
    rows = [row[: self._length] for row in rows]
    return scored.of_rows(subject.model, subject.variables, rows, batch_size=self._batch_size)


class Judge(_OfModel):
  """How sure a model is that an answer is good: the chance of its yes against its no.

  Feedback of a model in place of people's (Bai et al. 2022, arXiv:2212.08073, section 4.1): the two
  words are compared as continuations of the question.

  Args:
    question: with `{prompt}` and `{answer}`: what is asked of the judge, as a user.
    source, run, dtype: the judge, as of `Scored`.
    yes, no: what it may say.
    batch_size: answers at a time.

  Raises:
    ValueError: the question lacks `{answer}`, or the judge cannot be.
  """

  def __init__(
    self,
    question: str,
    source: str = "",
    run: str = "",
    dtype: str = "bfloat16",
    yes: str = "Yes",
    no: str = "No",
    batch_size: int = 16,
  ):
    if "{answer}" not in question:
      raise ValueError("the judge's question lacks {answer}, which it is about")
    super().__init__(source, run, dtype)
    self._question, self._batch_size = question, batch_size
    self._words = [self._subject.tokenizer.encode(w, add_special=False) for w in (yes, no)]
    if not all(self._words):
      raise ValueError(f"yes {yes!r} and no {no!r} are words of the judge's")

  def __call__(self, answers: Sequence[Answer]) -> np.ndarray:
    """See the class."""
    subject = self._subject
    asked = [self._asked(answer) for answer in answers]
    choices = generation.choose(
      subject.model,
      subject.variables,
      [prompts.encode(subject.tokenizer, question) for question in asked],
      [self._words] * len(asked),
      pad_id=subject.tokenizer.pad_id or 0,
      batch_size=self._batch_size,
    )
    return np.array(
      [1 / (1 + math.exp(min(no - yes, 700))) for yes, no in (c.scores for c in choices)]
    )

  def _asked(self, answer: Answer) -> Text:
    prompt = answer.prompt
    shown = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    # Not by `format`: braces of a prompt are its own.
    parts = re.split(r"(\{prompt\}|\{answer\})", self._question)
    text = "".join({"{prompt}": shown, "{answer}": answer.text}.get(part, part) for part in parts)
    if self._subject.tokenizer.chat_template is None:
      return text
    return [{"role": "user", "content": text}]


REWARDS: dict[str, Callable[..., Reward]] = {
  "scorer": Scorer,
  "pattern": Pattern,
  "length": Length,
  "consistency": Consistency,
  "model": Scored,
  "judge": Judge,
}


@dataclasses.dataclass(frozen=True)
class Rewards:
  """Rewards by their labels, and what each counts in their sum."""

  each: Mapping[str, tuple[float, Reward]]

  def check(self, problem: Mapping[str, Any]) -> None:
    """Raises ValueError if a row lacks what answers to it are judged by."""
    for label, (_, reward) in self.each.items():
      if isinstance(reward, Scorer):
        try:
          reward.check(problem)
        except ValueError as error:
          raise ValueError(f"for the reward {label!r} {error}") from error

  def __call__(self, answers: Sequence[Answer]) -> dict[str, np.ndarray]:
    """Of each label the rewards of all answers, float32 `[N]`, before their weights.

    Raises:
      FloatingPointError: one of them is not finite.
      ValueError: an answer cannot be judged: a row that `check` refuses, or more tokens than a
        model that judges can take.
    """
    found = {}
    for label, (_, reward) in self.each.items():
      found[label] = np.asarray(reward(answers), np.float32)
      if not np.isfinite(found[label]).all():
        raise FloatingPointError(f"the reward {label!r} of an answer is not finite")
    return found

  def total(self, found: Mapping[str, np.ndarray]) -> np.ndarray:
    """The weighted sum of what was found, float32 `[N]`."""
    parts = [np.float32(self.each[label][0]) * rewards for label, rewards in found.items()]
    return np.stack(parts).sum(axis=0, dtype=np.float32)


def build(sections: Sequence[Mapping[str, Any]], mesh: jax.sharding.Mesh | None = None) -> Rewards:
  """The rewards that sections name, each with a `weight` (1) and a `label` (its name).

  Args:
    mesh: of the run, where models among them are to lie; None: on JAX's own device.

  Raises:
    ConfigError: there is none, one is unknown or takes no such setting, or two have one label.
  """
  each: dict[str, tuple[float, Reward]] = {}
  for section in sections:
    own = {key: value for key, value in section.items() if key not in ("weight", "label")}
    label = str(section.get("label", section.get("name")))
    if label in each:
      raise config_lib.ConfigError(f"two rewards are {label!r}; give one another 'label'")
    reward = config_lib.call(REWARDS, own)
    if mesh is not None and isinstance(reward, _OfModel):
      reward.spread(mesh)
    each[label] = (float(section.get("weight", 1.0)), reward)
  if not each:
    raise config_lib.ConfigError(
      f"rollout.rewards is empty; a reward is one of {', '.join(REWARDS)}"
    )
  return Rewards(each)
