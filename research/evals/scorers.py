"""Whether a written answer is right.

A scorer is `(text, problem) -> Verdict`; `problem` is the row that asked, with its `answer`. It has
two halves: what is read in a text, by which votes are counted, too, and what is judged of that.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from research.core import tree


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What was read in an answer. Invariant: an answer in which nothing was read is not correct.

  value: what was taken for the answer, None if there is nothing that could be.
  """

  value: str | None
  correct: bool


@dataclasses.dataclass(frozen=True)
class Scorer:
  """How an answer is read, without the reference, and how what was read is judged.

  read: the value in a text, None if there is nothing that could be one. Values are hashable, and
    equal where they are the same answer, so that votes can be counted by them.
  judge: `(value, problem)` -> whether it is right; no value never is. A problem without what it is
    judged by is a ValueError, whatever the value.
  show: a value in words.
  """

  read: Callable[[str], Any]
  judge: Callable[[Any, Mapping[str, Any]], bool]
  show: Callable[[Any], str] = str

  def check(self, problem: Mapping[str, Any]) -> None:
    """Raises ValueError if the problem lacks what answers to it are judged by."""
    self.judge(None, problem)

  def __call__(self, text: str, problem: Mapping[str, Any]) -> Verdict:
    """What is read in `text`, judged; errors are those of `judge`."""
    value = self.read(text)
    return Verdict(None if value is None else self.show(value), self.judge(value, problem))


# An exponent is part of the number it raises, and is read only to be passed over.
_NUMBER = re.compile(
  r"""
  \^ \s* \{? [-+\u2212]? [0-9]+
  | (?: (?<![\w)\]}]) (?P<sign>[-+\u2212]) )? [$\u20ac\u00a3]?
    (?<! [^\W_] ) (?<! [0-9][.] )                     # not within a word or a version number
    (?P<digits> (?: [0-9]{1,3} (?: , [0-9]{3} )+ (?![0-9]) | [0-9]+ ) (?: [.][0-9]+ )?
      | (?<! [.] ) [.][0-9]+ )
  """,
  re.VERBOSE,
)


def numbers(text: str) -> list[Decimal]:
  """The numbers in `text`, in order, exactly.

  Commas between groups of three digits are thousands separators, other commas part numbers. A
  minus (hyphen or U+2212) is a sign where it touches the number, or its currency symbol, and
  follows no digit, letter or bracket: `5-3` holds 5 and 3, `5 -3` holds 5 and -3. Units may
  follow without a space. Digits within a word (`H2O`) and after `^` are no numbers, and a
  fraction is its two parts.
  """
  found = []
  for match in _NUMBER.finditer(text):
    if match["digits"]:
      value = Decimal(match["digits"].replace(",", ""))
      found.append(-value if match["sign"] in ("-", "\u2212") else value)
  return found


def _last_number(text: str) -> Decimal | None:
  """The last number of the text; 7, 7.0 and 7.00 are equal, 3.14 and 3.1416 are not."""
  found = numbers(text)
  return found[-1] if found else None


def _is_number(value: Decimal | None, problem: Mapping[str, Any]) -> bool:
  """Whether it is equal to the reference as a decimal, without tolerance.

  Raises:
    ValueError: there is no reference, or it is not one number.
  """
  _require(problem, "answer")
  reference = numbers(str(problem["answer"]))
  if len(reference) != 1:
    raise ValueError(
      f"the answer {problem['answer']!r} is not one number; score it by 'exact' or 'reasoning_gym'"
    )
  return value is not None and value == reference[0]


def _whole(text: str) -> str | None:
  """The whole text, but for white space around it."""
  return text.strip() or None


def _is_reference(value: str | None, problem: Mapping[str, Any]) -> bool:
  _require(problem, "answer")
  return value is not None and value == str(problem["answer"]).strip()


def _tagged(text: str) -> str | None:
  """What stands in the last `<answer>` … `</answer>`, or else the whole text."""
  found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
  return (found[-1] if found else text).strip() or None


def _has_full_mark(value: str | None, problem: Mapping[str, Any]) -> bool:
  """Whether the task's own `score_answer` gives it 1.

  Args:
    problem: a row of the source `reasoning_gym`: `task`, `question`, `metadata`, and `answer`, None
      where the task has no reference.

  Raises:
    ValueError: a column is missing, or there is no such task.
  """
  _require(problem, "task", "question", "metadata")
  score, answer = _score_answer(problem["task"]), problem.get("answer")
  if value is None:
    return False
  entry = {
    "question": problem["question"],
    "answer": None if answer is None else str(answer),
    "metadata": problem["metadata"],
  }
  try:
    return score(value, entry) >= 1.0
  except Exception:
    # The verifiers of some tasks raise what they like (ValueError, TypeError, KeyError, ...) on a
    # text that is not of the form they expect. An answer that cannot be read is wrong.
    return False


def _require(problem: Mapping[str, Any], *columns: str) -> None:
  """Raises ValueError for columns that the problem lacks."""
  there = [name for name, value in problem.items() if value is not None]
  if missing := [name for name in columns if name not in there]:
    raise ValueError(
      f"there is no {', '.join(map(repr, missing))}{tree.nearest(missing[0], there)}"
    )


@functools.cache
def _score_answer(task: str) -> Callable[[str, Mapping[str, Any]], float]:
  from reasoning_gym.factory import get_score_answer_fn  # Takes seconds to import.

  return get_score_answer_fn(task)


# The whole text is the reference.
exact = Scorer(_whole, _is_reference)
# The last number of the text is the reference.
last_number = Scorer(_last_number, _is_number, lambda value: f"{value:f}")
# The task's own verifier, shown what reasoning-gym's own harness shows it. Without tags only whole
# texts that are equal vote together: chains of thought are to be asked for tags.
reasoning_gym = Scorer(_tagged, _has_full_mark)

SCORERS: dict[str, Scorer] = {
  "exact": exact,
  "last_number": last_number,
  "reasoning_gym": reasoning_gym,
}


def require(name: str) -> None:
  """Raises ValueError if there is no scorer of that name."""
  if name not in SCORERS:
    raise ValueError(
      f"there is no scorer {name!r}{tree.nearest(name, SCORERS)}; there are {', '.join(SCORERS)}"
    )
