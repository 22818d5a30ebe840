"""What an evaluator returns: figures, their intervals, and the items they are made of."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.evals import bootstrap


def item_id(index: int, content: str) -> str:
  """The `id` of a record: its item's place, and a digest of what the item is."""
  return f"{index}:{hashlib.sha256(content.encode()).hexdigest()[:12]}"


@dataclasses.dataclass(frozen=True)
class Result:
  """The outcome of one evaluator.

  Invariant: every metric named in `means` is `sum(record[value]) / sum(record[weight])` over the
  `records` that have the value, and every record has an `id` of its own. An id tells an item's
  content too, so that two results have an id in common only where they judged the same thing.

  Attributes:
    name: the evaluator's label, its key among a run's results.
    metrics: `name -> figure`.
    records: one dict an item, ready for JSON.
    means: the metrics that can be compared between two results, each as the names of the
      records' fields `(value, weight)`; no weight stands for 1.
    intervals: `metric -> (low, high)`, 95 %.
    samples: items in words, to be shown to a person.
    tables: figures of more than one dimension, `name -> rows`, ready for JSON; plots are of them.
  """

  name: str
  metrics: dict[str, float]
  records: list[dict[str, Any]]
  means: Mapping[str, tuple[str, str | None]]
  intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  samples: list[str] = dataclasses.field(default_factory=list)
  tables: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict[str, Any]:
    """All of it, as `from_json` reads it."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, saved: Mapping[str, Any]) -> Result:
    """The result that `to_json` gave.

    Raises:
      ValueError: it is something else.
    """
    fields = {field.name for field in dataclasses.fields(cls)}
    if set(saved) not in (fields, fields - {"tables"}):  # which older files lack
      raise ValueError(f"a saved result has {', '.join(sorted(fields))}, not {sorted(saved)}")
    pairs = {key: {n: tuple(p) for n, p in saved[key].items()} for key in ("means", "intervals")}
    return cls(**{**saved, **pairs})


Evaluator = Callable[[Any, Any, Any], Result]
"""`(model, variables, tokenizer) -> Result`, with the attribute `label`, the result's name."""


@dataclasses.dataclass(frozen=True)
class Difference:
  """One metric of two results on the same items; `difference = first - second`.

  first, second: over the items whose value both results have.
  interval: 95 %, None where there is but one item.
  items: how many these are.
  """

  result: str
  metric: str
  first: float
  second: float
  difference: float
  interval: tuple[float, float] | None
  items: int


def compare(first: Result, second: Result, seed: int = 0) -> list[Difference]:
  """Paired differences `first - second` of the metrics that both have as means over items.

  An item without the value on either side (a text too short for it) counts on neither.

  Raises:
    ValueError: they did not judge the same items, or measured them with other weights (as two
      tokenizers do).
  """
  ours = {record["id"]: record for record in first.records}
  theirs = {record["id"]: record for record in second.records}
  if ours.keys() != theirs.keys():
    raise ValueError(
      f"{first.name}: only {len(ours.keys() & theirs.keys())} of {len(ours)} and {len(theirs)} "
      "items are the same; compare results on the same data with the same settings"
    )
  differences = []
  for metric, (value, weight) in first.means.items():
    if second.means.get(metric) != (value, weight):
      continue
    keys = [key for key, record in ours.items() if value in record and value in theirs[key]]
    if not keys:
      continue
    weights = [_weight(ours[key], weight) for key in keys]
    if weights != [_weight(theirs[key], weight) for key in keys]:
      raise ValueError(f"{first.name}: {metric} counts other {weight} in the two results")
    a, b = ([items[key][value] for key in keys] for items in (ours, theirs))
    figures = (math.fsum(a) / math.fsum(weights), math.fsum(b) / math.fsum(weights))
    interval = None
    if len(keys) > 1:
      _, low, high = bootstrap.paired(a, b, seed=seed, weights=weights)
      interval = (low, high)
    difference = figures[0] - figures[1]
    differences.append(Difference(first.name, metric, *figures, difference, interval, len(keys)))
  return differences


def _weight(record: Mapping[str, Any], field: str | None) -> float:
  return 1.0 if field is None else record[field]


def table(results: Sequence[Result]) -> str:
  """A line a metric: the figure and its interval."""
  rows = [("", "value", "95 % interval")]
  for result in results:
    rows.append((result.name, "", ""))
    for metric, value in result.metrics.items():
      rows.append((f"  {metric}", _figure(value), _range(result.intervals.get(metric))))
  return _aligned(rows)


def comparison_table(
  differences: Sequence[Difference], first: str = "first", second: str = "second"
) -> str:
  """A line a metric: both figures, their difference and its interval."""
  rows = [("", first, second, "difference", "95 % interval")]
  named = ""
  for d in differences:
    if d.result != named:
      named = d.result
      rows.append((named, "", "", "", ""))
    figures = (_figure(d.first), _figure(d.second), _figure(d.difference, "+"))
    rows.append((f"  {d.metric}", *figures, _range(d.interval, "+")))
  return _aligned(rows)


def _figure(value: float, sign: str = "") -> str:
  """Four decimals, or a whole number (a count)."""
  return f"{value:{sign},d}" if isinstance(value, int) else f"{value:{sign},.4f}"


def _range(ends: tuple[float, float] | None, sign: str = "") -> str:
  return "" if ends is None else f"[{_figure(ends[0], sign)}, {_figure(ends[1], sign)}]"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
  """Columns, the first to the left and the others to the right, under a ruled heading."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for first, *others in rows:
    cells = [first.ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
    lines.append("  ".join(cells).rstrip())
  rule = "  ".join("-" * width for width in widths)
  return "\n".join([lines[0], rule, *lines[1:]])
