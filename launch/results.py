"""What a sweep found, in figures: means and intervals over seeds, and paired differences.

Seeds are what is drawn. Intervals are Student's, since a bootstrap of three to five seeds is too
narrow. How far a figure would be off on other test items is another question; where runs keep
what they found of each item, it is answered by the paired bootstrap of `research.evals`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from launch import runs
from launch.points import Point
from launch.runs import Run
from research.core import tree
from research.core.config import ConfigError
from research.evals import Result, bootstrap

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Mean:
  """A mean over seeds.

  Attributes:
    value: of the finite values; NaN where there are none.
    interval: 95 %, Student's; None of fewer than two seeds.
    count: finite values.
    not_finite: values that are NaN or infinite, and not in the mean.
  """

  value: float
  interval: Interval | None
  count: int
  not_finite: int = 0


@dataclasses.dataclass(frozen=True)
class Difference:
  """A point's mean minus its baseline's, over the seeds that both have a finite value from.

  Attributes:
    baseline: the other's name.
    over_seeds: the mean of the differences seed by seed.
    over_items: 95 % of the difference by a bootstrap over evaluated items, each the mean over
      these seeds; None where runs keep no items of the metric.
  """

  baseline: str
  over_seeds: Mean
  over_items: Interval | None


@dataclasses.dataclass(frozen=True)
class Row:
  """What is known of a point.

  Attributes:
    point: which.
    runs: its runs, by state.
    values: `metric -> seed -> value` of complete runs.
    means: `metric -> mean over seeds`.
    differences: `metric -> difference from the baseline`, where it has one.
  """

  point: Point
  runs: Mapping[str, Sequence[Run]]
  values: Mapping[str, Mapping[int, float]]
  means: Mapping[str, Mean]
  differences: Mapping[str, Difference]


def mean(values: Sequence[float]) -> Mean:
  """The mean of the finite values, with Student's interval: x +- t s / sqrt(n)."""
  finite = [value for value in values if math.isfinite(value)]
  others = len(values) - len(finite)
  if not finite:
    return Mean(math.nan, None, 0, others)
  center = statistics.fmean(finite)
  if len(finite) == 1:
    return Mean(center, None, 1, others)
  error = statistics.stdev(finite) / math.sqrt(len(finite))
  half = float(stats.t.ppf(0.975, len(finite) - 1)) * error
  return Mean(center, (center - half, center + half), len(finite), others)


def collect(
  points: Sequence[Point],
  of_sweep: Sequence[Run],
  metrics: Sequence[str],
  baselines: Mapping[str, str],
) -> list[Row]:
  """A row for each point, in their order.

  Args:
    points: of the sweep.
    of_sweep: all runs of these points.
    metrics: of which figures are told.
    baselines: `point -> the point that it is compared with`, by name.

  Raises:
    ConfigError: there are complete runs, and none of them tells one of the metrics.
  """
  by_point: dict[str, list[Run]] = {point.name: [] for point in points}
  for run in of_sweep:
    by_point[run.point.name].append(run)
  complete = {run: runs.figures(run) for run in of_sweep if runs.state(run) == runs.COMPLETE}
  known = {name for figures in complete.values() for name in figures}
  for metric in metrics:
    if complete and metric not in known:
      raise ConfigError(f"no run tells {metric!r}{tree.nearest(metric, sorted(known))}")
  values = {
    name: {
      metric: {r.seed: complete[r][metric] for r in each if metric in complete.get(r, {})}
      for metric in metrics
    }
    for name, each in by_point.items()
  }
  rows = []
  for point in points:
    states: dict[str, list[Run]] = {}
    for run in by_point[point.name]:
      states.setdefault(runs.state(run), []).append(run)
    ours = values[point.name]
    against = baselines.get(point.name)
    differences = {}
    for metric in metrics if against else ():
      assert against
      theirs = values[against][metric]
      pairs = {
        seed: value - theirs[seed]
        for seed, value in ours[metric].items()
        if math.isfinite(value) and math.isfinite(theirs.get(seed, math.nan))
      }
      if pairs:
        items = _over_items(metric, sorted(pairs), by_point[point.name], by_point[against])
        differences[metric] = Difference(against, mean(list(pairs.values())), items)
    means = {metric: mean(list(found.values())) for metric, found in ours.items()}
    rows.append(Row(point, states, ours, means, differences))
  return rows


def _over_items(
  metric: str, seeds: Sequence[int], ours: Sequence[Run], theirs: Sequence[Run]
) -> Interval | None:
  """The bootstrap interval of the difference over the items that all these runs judged."""
  sides = []
  for side in (ours, theirs):
    each = [_items(run, metric) for run in side if run.seed in seeds]
    if not all(each) or any(one.keys() != each[0].keys() for one in each):
      return None
    sides.append(each)
  first, second = sides
  ids = list(first[0])
  weights = [first[0][i][1] for i in ids]
  if len(ids) < 2 or first[0].keys() != second[0].keys():
    return None
  if any([one[i][1] for i in ids] != weights for one in (*first, *second)):
    return None
  a, b = (np.mean([[one[i][0] for i in ids] for one in side], axis=0) for side in sides)
  _, low, high = bootstrap.paired(a, b, weights=weights)
  return low, high


def _items(run: Run, metric: str) -> dict[str, tuple[float, float]]:
  """`item -> (value, weight)` at the run's last evaluation; empty where it keeps none."""
  prefix, _, name = metric.rpartition("/")
  files = (run.directory / "evaluations").glob("*.json")
  last = max(files, key=lambda file: int(file.stem), default=None)
  if last is None or not prefix.startswith("eval/"):
    return {}
  for saved in json.loads(last.read_text())["results"]:
    result = Result.from_json(saved)
    if f"eval/{result.name}" == prefix and name in result.means:
      value, weight = result.means[name]
      return {
        record["id"]: (record[value], 1.0 if weight is None else record[weight])
        for record in result.records
        if value in record
      }
  return {}
