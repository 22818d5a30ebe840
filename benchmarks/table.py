"""Results of all rounds as the table that a person reads."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.bars import BARS, Bar, Measure
from benchmarks.works import WORKS

# work -> side -> one result a round
Results = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]

_UNITS: dict[Measure, tuple[str, float]] = {
  "tokens_per_second": ("tokens/s", 1),
  "items_per_second": ("items/s", 1),
  "peak_bytes": ("GB peak", 1e9),
  "compile_seconds": ("s to compile", 1),
  "startup_seconds": ("s", 1),
  "pause_share": ("share", 1),
}
_HEADER = ["work", "peer", "ours", "the peer's", "ratio", "bar", "aim", "verdict"]


@dataclasses.dataclass(frozen=True)
class Spread:
  """The median of one measure over the rounds, and its extremes."""

  median: float
  low: float
  high: float

  def told(self, scale: float) -> str:
    """`median [low-high]`, in units of `scale`."""
    median, low, high = (_number(v / scale) for v in (self.median, self.low, self.high))
    return f"{median} [{low}-{high}]"


@dataclasses.dataclass(frozen=True)
class Row:
  """A bar, what was measured for it, `value` that its limits are about, and the verdict."""

  bar: Bar
  ours: Spread
  theirs: Spread | None
  value: float
  verdict: str


def rows(results: Results) -> list[Row]:
  """A row for each bar whose sides were measured."""
  found = []
  for bar in BARS:
    sides = results.get(bar.work, {})
    if not sides.get("ours") or (bar.peer and not sides.get(bar.peer)):
      continue
    ours = _spread(sides["ours"], bar.measure)
    theirs = _spread(sides[bar.peer], bar.measure) if bar.peer else None
    value = ours.median / theirs.median if theirs else ours.median
    found.append(Row(bar, ours, theirs, value, bar.verdict(value)))
  return found


def render(results: Results) -> str:
  """The rows as a Markdown table: medians, with the range over the rounds in brackets."""
  lines = [_HEADER, *(_cells(row) for row in rows(results))]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  lines.insert(1, ["-" * width for width in widths])
  return "\n".join(
    "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
    for line in lines
  )


def _cells(row: Row) -> list[str]:
  unit, scale = _UNITS[row.bar.measure]
  return [
    f"{WORKS[row.bar.work].title} ({unit})",
    row.bar.peer or "-",
    row.ours.told(scale),
    row.theirs.told(scale) if row.theirs else "-",
    f"{row.value:.2f}x" if row.theirs else "-",
    _limit(row.bar, row.bar.required),
    _limit(row.bar, row.bar.aim),
    row.verdict,
  ]


def _spread(runs: Sequence[Mapping[str, Any]], measure: Measure) -> Spread:
  values = [run[measure] for run in runs]
  return Spread(statistics.median(values), min(values), max(values))


def _number(value: float) -> str:
  return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _limit(bar: Bar, limit: float | None) -> str:
  if limit is None:
    return "-"
  sign = ">=" if bar.more_is_better else "<="
  unit = "x" if bar.peer else "" if bar.measure == "pause_share" else " s"
  return f"{sign} {limit:g}{unit}"
