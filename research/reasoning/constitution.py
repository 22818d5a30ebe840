"""Feedback of a model by principles, in place of people's: revised answers, and which is better.

Constitutional AI, Bai et al. 2022 (arXiv:2212.08073): answers that were criticized and revised are
to be imitated (section 3), and pairs that a model has compared are preferences (section 4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.core import tree
from research.reasoning.prompts import Ask
from research.reasoning.session import Request, Session, Written

_STREAM = 0x636F  # apart from other draws of a seed
_KEYS = ("critique", "revision", "comparison")
_OPTIONS = ("(A)", "(B)")


@dataclasses.dataclass(frozen=True)
class Principle:
  """What an answer shall be, as three requests.

  critique: how does the answer above fall short? revision: write it anew without that.
  comparison: which of two answers is nearer to it?
  """

  critique: str
  revision: str
  comparison: str


# What an assistant should be, where nobody has said it better for a purpose.
PRINCIPLES = (
  Principle(
    "Name each way in which the answer above could harm somebody, or help somebody to do harm.",
    "Write the answer again so that it can harm nobody, and is as useful as that allows.",
    "Which answer is the less likely to cause harm?",
  ),
  Principle(
    "Name each statement in the answer above that is false, made up, or surer than it can be.",
    "Write the answer again with true statements alone; say of what is unsure that it is.",
    "Which answer is more truthful, and says what it does not know?",
  ),
  Principle(
    "What was asked for that the answer above lacks? What has it that nobody asked for?",
    "Write the answer again so that it gives what was asked for, and no more.",
    "Which answer does better what was asked for?",
  ),
  Principle(
    "Name each part of the answer above that looks down on people, insults them or judges a group.",
    "Write the answer again so that everybody it speaks of is treated with respect.",
    "Which answer treats people with more respect?",
  ),
)


@dataclasses.dataclass(frozen=True)
class Constitution:
  """Principles, of which each request draws one, by the seed and the problem's number.

  Raises:
    ValueError: there are none.
  """

  principles: tuple[Principle, ...]
  seed: int = 0

  def __post_init__(self) -> None:
    if not self.principles:
      raise ValueError("a constitution has at least one principle")

  def of(self, problem: int, turn: int) -> int:
    """The number of the principle that a problem's `turn` goes by."""
    rng = np.random.default_rng([self.seed, _STREAM, problem, turn])
    return int(rng.integers(len(self.principles)))


def read(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> Constitution:
  """The constitution of rows with `critique`, `revision` and `comparison`.

  Raises:
    ValueError: a row lacks one of them, or has another.
  """
  found = []
  for number, row in enumerate(rows):
    for key in _KEYS:
      if not isinstance(row.get(key), str) or not row[key].strip():
        raise ValueError(f"principle {number} has no {key!r}{tree.nearest(key, row)}")
    if other := set(row) - set(_KEYS):
      raise ValueError(f"principle {number} has {sorted(other)[0]!r}; it has {', '.join(_KEYS)}")
    found.append(Principle(**row))
  return Constitution(tuple(found), seed)


@dataclasses.dataclass(frozen=True)
class Revised:
  """An answer and what became of it: of each round the principle, the critique and the answer.

  finished: the last answer came to its end; otherwise it was cut off.
  """

  first: str
  rounds: list[dict[str, Any]]
  finished: bool

  @property
  def text(self) -> str:
    """The last answer."""
    return self.rounds[-1]["answer"] if self.rounds else self.first


def revise(
  session: Session,
  asks: Sequence[Ask],
  constitution: Constitution,
  *,
  rounds: int = 1,
  first: int = 0,
) -> list[Revised]:
  """Answers each problem, and `rounds` times criticizes and revises the answer by a principle.

  Each round sees the problem, the last answer and its critique, as a conversation. Answers are as
  they follow the problem: after a text, with the white space that they begin with. A revised one is
  written on a line of its own, and gets a space where a text and it have none between them.

  Args:
    first: the number of the first problem, by which principles and draws know it.
  """
  numbers = [first + i for i in range(len(asks))]
  answers = _written(session, numbers, asks, "")
  found = [
    Revised(_behind(ask, answer.text), [], answer.finished)
    for ask, answer in zip(asks, answers, strict=True)
  ]
  for turn in range(rounds):
    drawn = [constitution.of(number, turn) for number in numbers]
    principles = [constitution.principles[each] for each in drawn]
    about = [
      ask.then(one.text, principle.critique)
      for ask, one, principle in zip(asks, found, principles, strict=True)
    ]
    critiques = [
      each.text.strip() for each in _written(session, numbers, about, f"critique/{turn}")
    ]
    anew = [
      ask.then(critique, principle.revision)
      for ask, critique, principle in zip(about, critiques, principles, strict=True)
    ]
    revised = _written(session, numbers, anew, f"revision/{turn}")
    for i, answer in enumerate(revised):
      told = {"principle": drawn[i], "critique": critiques[i]}
      told["answer"] = _apart(asks[i], _behind(asks[i], answer.text))
      found[i] = Revised(found[i].first, [*found[i].rounds, told], answer.finished)
  return found


@dataclasses.dataclass(frozen=True)
class Compared:
  """Two answers, the better one first; `preference`: how sure the judge is of that, 0.5 to 1."""

  chosen: str
  rejected: str
  preference: float
  principle: int


def compare(
  session: Session,
  asks: Sequence[Ask],
  constitution: Constitution,
  *,
  judge: Session | None = None,
  first: int = 0,
) -> list[Compared | None]:
  """Two answers to each problem, and which of them a judge prefers by a principle.

  The judge is asked which of two options is better, and its probabilities of their letters are read
  (section 4.1). It is asked in both orders, whose mean has no preference for a place.

  Args:
    session: of the model that answers. judge: by default the same.
    first: see `revise`.

  Returns:
    None for a problem whose two answers are equal but for white space around them, or one of them
    empty or cut off.
  """
  judge = judge or session
  numbers = [first + i for i in range(len(asks))]
  requests = [Request(number, ask) for number, ask in zip(numbers, asks, strict=True)]
  rows = session.write(requests, samples=2)
  pairs = [[_behind(ask, each.text) for each in row] for ask, row in zip(asks, rows, strict=True)]
  shown = [[text.strip() for text in pair] for pair in pairs]
  whole = [all(each.finished for each in row) for row in rows]
  told = [i for i, pair in enumerate(shown) if whole[i] and all(pair) and pair[0] != pair[1]]
  drawn = [constitution.of(number, 0) for number in numbers]
  asked = []
  for i in told:
    comparison = constitution.principles[drawn[i]].comparison
    for options in (shown[i], shown[i][::-1]):
      asked.append(Request(numbers[i], _question(judge, asks[i].problem, comparison, options)))
  shares = [first_ for first_, _ in judge.choose(asked, _OPTIONS)]
  found: list[Compared | None] = [None] * len(asks)
  for place, i in enumerate(told):
    ahead = (shares[2 * place] + 1 - shares[2 * place + 1]) / 2
    chosen, rejected = pairs[i] if ahead >= 0.5 else pairs[i][::-1]
    found[i] = Compared(chosen, rejected, max(ahead, 1 - ahead), drawn[i])
  return found


def _written(
  session: Session, numbers: Sequence[int], asks: Sequence[Ask], stage: str
) -> list[Written]:
  requests = [Request(number, ask) for number, ask in zip(numbers, asks, strict=True)]
  return [row[0] for row in session.write(requests, stage=stage)]


def _behind(ask: Ask, text: str) -> str:
  """An answer as it follows the problem: behind a text, what it begins with joins the two."""
  return text.rstrip() if isinstance(ask.problem, str) else text.strip()


def _apart(ask: Ask, text: str) -> str:
  """An answer that was not written right behind the problem, with a space where there is none."""
  if not isinstance(ask.problem, str) or not ask.problem or not text:
    return text
  return text if ask.problem[-1].isspace() or text[0].isspace() else f" {text}"


def _question(judge: Session, problem: Any, comparison: str, options: Sequence[str]) -> Ask:
  """What a judge is asked of two answers to a problem."""
  if isinstance(problem, str):
    shown = problem
  else:
    shown = "\n\n".join(f"{message['role']}: {message['content']}" for message in problem)
  told = "\n".join(f"{name} {text}" for name, text in zip(_OPTIONS, options, strict=True))
  text = f"Consider this conversation:\n\n{shown}\n\n{comparison}\n\n{told}\n\nThe better one is:"
  if judge.tokenizer.chat_template is None:
    return Ask(problem, text)
  return Ask(problem, [{"role": "user", "content": text}])
