"""Rejection sampling: what a model answered rightly, as rows to train it on.

A round of STaR without its hints (Zelikman et al. 2022, arXiv:2203.14465, section 3.1): chains are
sampled, those that end in the right answer are kept, and the model learns to write them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Kept:
  """Rows of `messages`, or of `prompt` and `completion` where problems are texts.

  problems: how many were asked. without: how many of them have no row.
  """

  rows: list[dict[str, Any]]
  problems: int
  without: int


def right(report: Mapping[str, Any], most: int) -> Kept:
  """The right answers of an evaluation, of each problem the first `most` that differ.

  The problem is as it stands in the data, without instruction or exemplars. Answers that were cut
  off, and what only white space tells from another, are left out. Several evaluators that asked the
  same problem add to each other.

  Args:
    report: what `research.evaluate` writes, or a run's `evaluations/STEP.json`.

  Raises:
    ValueError: it is something else, has no evaluator with a strategy, or no right answer; `most`
      is not positive.
  """
  if most < 1:
    raise ValueError(f"{most} answers a problem are none; keep at least 1")
  asked = records(report)
  found: dict[str, dict[str, dict[str, Any]]] = {}
  for record in asked:
    own = found.setdefault(record["id"], {})
    for sample in record["samples"]:
      text = sample["completion"].strip()
      if sample["correct"] and not sample["unfinished"] and text not in own and len(own) < most:
        own[text] = _row(record["prompt"], sample["completion"])
  rows = [row for own in found.values() for row in own.values()]
  if not rows:
    raise ValueError(f"none of {len(found)} problems has a right answer")
  return Kept(rows, len(found), sum(not own for own in found.values()))


def records(report: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The records of all evaluators of a report that kept their answers.

  Raises:
    ValueError: it is no report, or has none.
  """
  results = report.get("results") if isinstance(report, Mapping) else None
  if not results:
    raise ValueError("this is not the file of an evaluation: it has no 'results'")
  results = list(results.values()) if isinstance(results, Mapping) else results
  found = [each for result in results for each in result["records"] if "samples" in each]
  if not found:
    raise ValueError(
      "no evaluator kept its answers: give 'verifiable' a strategy, {'name': 'plain'} at least"
    )
  return found


def _row(prompt: Any, completion: str) -> dict[str, Any]:
  if isinstance(prompt, str):
    return {"prompt": prompt, "completion": completion}
  return {"messages": [*prompt, {"role": "assistant", "content": completion.strip()}]}
