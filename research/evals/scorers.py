"""Whether a written answer is right.

A scorer is `(text, problem) -> Verdict`; `problem` is the row that asked, with its `answer`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What was read in an answer. Invariant: an answer in which nothing was read is not correct.

  value: what was taken for the answer, None if there is nothing that could be.
  """

  value: str | None
  correct: bool


Scorer = Callable[[str, Mapping[str, Any]], Verdict]

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


def last_number(text: str, problem: Mapping[str, Any]) -> Verdict:
  """The last number of the text, equal to the reference as a decimal.

  No tolerance: 7, 7.0 and 7.00 are equal, 3.14 and 3.1416 are not.

  Raises:
    ValueError: the reference is not one number.
  """
  reference = numbers(problem["answer"])
  if len(reference) != 1:
    raise ValueError(
      f"the answer {problem['answer']!r} is not one number; score it by 'exact' or 'reasoning_gym'"
    )
  found = numbers(text)
  if not found:
    return Verdict(None, False)
  return Verdict(f"{found[-1]:f}", found[-1] == reference[0])


def exact(text: str, problem: Mapping[str, Any]) -> Verdict:
  """The whole text is the reference, but for white space around it."""
  text = text.strip()
  return Verdict(text or None, text != "" and text == problem["answer"].strip())


def reasoning_gym(text: str, problem: Mapping[str, Any]) -> Verdict:
  """The task's own `score_answer` gives its full mark, 1.

  It is shown what stands in the last `<answer>` … `</answer>`, as reasoning-gym's own harness
  does, or else the whole text.

  Args:
    problem: a row of the source `reasoning_gym`: `task`, `question`, `answer`, `metadata`.
  """
  tagged = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
  value = (tagged[-1] if tagged else text).strip()
  if not value:
    return Verdict(None, False)
  entry = {key: problem[key] for key in ("question", "answer", "metadata")}
  return Verdict(value, _score_answer(problem["task"])(value, entry) >= 1.0)


@functools.cache
def _score_answer(task: str) -> Callable[[str, Mapping[str, Any]], float]:
  from reasoning_gym.factory import get_score_answer_fn  # Takes seconds to import.

  return get_score_answer_fn(task)


SCORERS: dict[str, Scorer] = {
  "exact": exact,
  "last_number": last_number,
  "reasoning_gym": reasoning_gym,
}
