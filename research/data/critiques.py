"""Where a model's critique of its own answer was right, as rows to train it on.

What Self-Refine asks of a model (Madaan et al. 2023, arXiv:2303.17651), taught by rejection
sampling as in `data.chains`: to find a mistake, to mend it, and to find none where none is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from research.data import chains, prompts


@dataclasses.dataclass(frozen=True)
class Kept:
  """Rows of `prompt` and `completion`, texts or messages as the problems are.

  corrected: wrong answers whose critique led to a right one, of two rows each. confirmed: right
  ones in which a critique found nothing, of one row each. problems: how many were asked. without:
  how many of them have no row.
  """

  rows: list[dict[str, Any]]
  corrected: int
  confirmed: int
  problems: int
  without: int


def right(report: Mapping[str, Any], most: int) -> Kept:
  """What is to be learnt of an evaluation by the strategy `critique`.

  Each round of it saw the problem and one answer, and so does a row. Of a wrong answer that became
  right there are two, since all that an assistant says in `messages` would be learnt: up to the
  request for a critique, with that to be learnt, and up to the request to revise, with the right
  answer. The wrong answer is in prompts alone. Of a right answer in which nothing was found there
  is the first of these. The problem is as it stands in the data, without instruction or exemplars.
  Rounds with an answer or a critique that was cut off, or with an empty critique, are left out.

  Args:
    report: what `research.evaluate` writes, or a run's `evaluations/STEP.json`.
    most: rounds of each problem that rows are made of, the first that differ.

  Raises:
    ValueError: it is something else, has no evaluator with that strategy, or nothing to learn from;
      `most` is not positive.
  """
  if most < 1:
    raise ValueError(f"{most} rounds a problem are none; keep at least 1")
  records = [each for each in chains.records(report) if "requests" in each.get("trace", {})]
  if not records:
    raise ValueError(
      "no evaluator kept critiques: give 'verifiable' the strategy {'name': 'critique'}, and"
      " evaluate again"
    )
  found: dict[str, list[list[dict[str, Any]]]] = {}
  for record in records:
    own = found.setdefault(record["id"], [])
    for rows in _rounds(record):
      if rows not in own and len(own) < most:
        own.append(rows)
  rounds = [rows for own in found.values() for rows in own]
  if not rounds:
    raise ValueError(
      f"none of {len(found)} problems has a wrong answer that was corrected, or a right one in"
      " which nothing was found"
    )
  corrected = sum(len(rows) == 2 for rows in rounds)
  without = sum(not own for own in found.values())
  rows = [row for rows in rounds for row in rows]
  return Kept(rows, corrected, len(rounds) - corrected, len(found), without)


def _rounds(record: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
  """The rows of each round of a record that was right: two of a correction, else one."""
  prompt, samples, trace = record["prompt"], record["samples"], record["trace"]
  said = str if isinstance(prompt, str) else str.strip  # as in `chains`
  for number, told in enumerate(trace["rounds"]):
    critique, answer = said(told["critique"]), samples[number]
    if told["unfinished"] or answer["unfinished"] or not critique.strip():
      continue
    first = prompts.then(prompt, said(answer["completion"]), trace["requests"]["critique"])
    if answer["correct"] and not told["found"]:
      yield [_row(first, critique)]
    for revised in samples[number + 1 : number + 2]:
      if revised["correct"] and not revised["unfinished"] and not answer["correct"]:
        second = prompts.then(first, critique, trace["requests"]["revise"])
        yield [_row(first, critique), _row(second, said(revised["completion"]))]


def _row(prompt: Any, text: str) -> dict[str, Any]:
  return {"prompt": prompt, "completion": prompts.completion(prompt, text)}
