"""What a run reads changes on its way: easy rows first, other mixtures, longer rows.

A curriculum cuts a run into phases, and in each the data have settings of their own. It is the
section `curriculum` of the data, of one of two names:

  {"name": "competence", "by": "length", "pace": "root", "start": 0.01, "until": 0.5}
  {"name": "phases", "phases": ({"until": 0.3, "length": 128}, {"until": 1.0, "weights": (1, 3)})}

`until` is a share of the run's steps. A phase may tell:

  length    tokens of a row (Li et al. 2021, arXiv:2108.06084); a batch keeps its rows, and so has
            fewer tokens, and each length is a program of its own;
  weights   of a mixture's parts, of which some may be 0;
  share     of each part's rows, the easiest by `by`, from which rows are drawn.

What a phase does not tell is as in the rest of the section. `by` is "length", characters of a row's
texts, or a column of numbers, such as the perplexity that `research.curate` writes; the smallest
come first, or with `descending` the largest: quality first. Of equals the first row does. Data that
are not shuffled come in this order, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from research.core import config as config_lib
from research.core import tree
from research.data import texts
from research.data.examples import BadRow, number_of
from research.data.source import Source, check_keys

LENGTH = "length"
PACES = ("linear", "root")


@dataclasses.dataclass(frozen=True)
class Phase:
  """A part of a run.

  stop: the number of the first step, from 0, that is no more of it.
  length, weights, share: see this module; None: as in the data section.
  order: phases of one number draw from the same rows, each where the one before has stopped.
  """

  stop: int
  length: int | None = None
  weights: tuple[float, ...] | None = None
  share: float = 1.0
  order: int = 0


@dataclasses.dataclass(frozen=True)
class Curriculum:
  """Phases of a run, the last of which ends with it, and by what rows are easy."""

  phases: tuple[Phase, ...]
  by: str = ""
  descending: bool = False

  def at(self, step: int) -> int:
    """The number of the phase of a step, from 0; beyond the run it is the last one's."""
    return next(
      (n for n, phase in enumerate(self.phases) if step < phase.stop), len(self.phases) - 1
    )

  def figures(self, step: int) -> dict[str, float]:
    """Where the curriculum is at a step, for a run's metrics."""
    number = self.at(step)
    phase = self.phases[number]
    found = {"curriculum/phase": number + 1.0}
    if self.by:
      found["curriculum/share"] = phase.share
    if phase.length:
      found["curriculum/length"] = float(phase.length)
    for part, weight in enumerate(phase.weights or ()):
      found[f"curriculum/weight_{part}"] = weight / sum(phase.weights or ())
    return found

  def __str__(self) -> str:
    by = f", by {self.by}{', largest first' if self.descending else ''}" if self.by else ""
    stops = ", ".join(str(phase.stop) for phase in self.phases)
    lengths = any(phase.length for phase in self.phases)
    rows = "; batches keep their rows, so that shorter ones have fewer tokens" if lengths else ""
    return f"a curriculum of {len(self.phases)} phases{by}, which end at steps {stops}{rows}"


def phases(
  phases: Sequence[Mapping[str, Any]], by: str = "", descending: bool = False, *, steps: int
) -> Curriculum:
  """The curriculum of given phases.

  Raises:
    ValueError: they do not end at 1, go back, or say what cannot be.
  """
  known = ("until", "length", "weights", "share")
  found: list[Phase] = []
  for number, given in enumerate(phases):
    where = f"curriculum.phases[{number}]"
    check_keys(where, given, known, ("until",))
    share = given.get("share", 1.0)
    if not 0 < share <= 1:
      raise ValueError(f"{where}: a share is above 0 and at most 1, not {share}")
    weights = given.get("weights")
    if weights is not None and (min(weights, default=0) < 0 or not sum(weights)):
      raise ValueError(f"{where}: weights are 0 or more, and one is more, not {list(weights)}")
    stop, before = round(given["until"] * steps), found[-1].stop if found else 0
    if stop <= before:
      raise ValueError(
        f"{where}: until {given['until']} of {steps} steps is step {stop}, and the phase begins at"
        f" step {before}"
      )
    anew = bool(found) and share != found[-1].share
    order = found[-1].order + anew if found else 0
    length = given.get("length")
    found.append(Phase(stop, length, tuple(weights) if weights else None, share, order))
  if not found or phases[-1]["until"] != 1:
    last = f"the last one at {phases[-1]['until']}" if found else "and there are none"
    raise ValueError(f"a curriculum's phases end at 1, the end of the run, {last}")
  if bool(by) != any(phase.share < 1 for phase in found):
    raise ValueError(
      "a curriculum's phases have a share below 1 where it says by what rows are easy, and only"
      f" there; by is {by!r}"
    )
  return Curriculum(tuple(found), by, descending)


def competence(
  by: str,
  pace: str = "root",
  start: float = 0.01,
  until: float = 0.5,
  updates: int = 20,
  descending: bool = False,
  *,
  steps: int,
) -> Curriculum:
  """Rows are drawn from the easiest share, which grows (Platanios et al. 2019, arXiv:1903.09848).

  Args:
    pace: "linear", or "root", whose new rows come more slowly the more there are (equation 7).
    start: the first share, c0. until: the share of the run at which all rows are drawn from.
    updates: how many times the share is renewed until then; each holds for as many steps.

  Raises:
    ValueError: a number is out of its range, the pace unknown, or the run a single step.
  """
  if pace not in PACES:
    raise ValueError(
      f"a curriculum's pace is one of {', '.join(PACES)}, not {pace!r}{tree.nearest(pace, PACES)}"
    )
  if not by or not 0 < start < 1 or not 0 < until <= 1 or updates < 1:
    raise ValueError(
      "a competence has a column or 'length' to go by, a start above 0 and below 1, until above 0"
      f" and at most 1, and updates of at least 1, not {by!r}, {start}, {until} and {updates}"
    )
  power = 2 if pace == "root" else 1
  found: list[dict[str, float]] = []
  for update in range(updates):
    share = (update / updates * (1 - start**power) + start**power) ** (1 / power)
    stop = round(until * (update + 1) / updates * steps)
    if stop > (round(found[-1]["until"] * steps) if found else 0):  # a short run has fewer
      found.append({"until": stop / steps, "share": share})
  if not found:
    if steps < 2:
      raise ValueError(f"a competence takes a run of 2 steps or more, not of {steps}")
    found.append({"until": 1 / steps, "share": start})
  if round(found[-1]["until"] * steps) < steps:
    found.append({"until": 1, "share": 1.0})
  return phases(found, by, descending, steps=steps)


NAMES: dict[str, Callable[..., Curriculum]] = {"competence": competence, "phases": phases}


def build(section: Any, steps: int | None) -> Curriculum | None:
  """The curriculum that a section describes for a run of so many steps; None of an empty one.

  Raises:
    ValueError: it cannot be, or there is no run.
  """
  if not section:
    return None
  if not steps:
    raise ValueError("a curriculum is of a run's steps, and here are none; leave it empty")
  return config_lib.call(NAMES, section, steps=steps)


def easiest(source: Source, by: str, descending: bool) -> np.ndarray:
  """The indices of a source's rows, the easiest first; rows that cannot be read come last.

  Raises:
    ValueError: a row has no number in the column `by`, or no text whose length could be told.
  """
  found = np.full(len(source), np.inf)
  sign = -1 if descending else 1
  for index in tqdm.tqdm(range(len(source)), f"{by} of rows", unit=" rows", delay=2, leave=False):
    try:
      row = source[index]
    except BadRow:
      continue
    try:
      found[index] = sign * _difficulty(row, by)
    except BadRow as error:
      raise ValueError(
        f"curriculum.by: {source.name} row {source.origin(index)} is {error}"
      ) from error
  return np.argsort(found, kind="stable")


def _difficulty(row: Mapping[str, Any], by: str) -> float:
  if by != LENGTH:
    return number_of(row, by)
  found = texts.of(row)
  if not found:
    raise BadRow("without a text", f"whose length could be told, in {list(row)}")
  return float(sum(map(len, found)))


def shares(orders: Sequence[np.ndarray], share: float) -> list[np.ndarray]:
  """The first `share` of each of `orders`, at least one."""
  counts = [max(1, math.ceil(share * len(order) - 1e-9)) for order in orders]
  return [order[:count] for order, count in zip(orders, counts, strict=True)]
