"""The plot of a sweep: every seed's figure, means and intervals, a panel a metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import runs
from launch.description import Sweep
from launch.results import Row
from research.core.config import ConfigError

_LOG_FROM = 10  # an axis whose ends differ by this factor is logarithmic
_BESIDE_FROM = 7  # so many curves are named beside the panel
_COLORS = 10  # of matplotlib, before they come again
_STYLES = ("-", "--", ":", "-.")


def draw(sweep: Sweep, rows: Sequence[Row], file: Path) -> None:
  """Writes a PNG: along the key `sweep.x`, or a line a point where there is none.

  A cross tells of a point that a run of failed or was not finite. An axis of figures goes as far as
  those of seeds do; intervals may go beyond.

  Raises:
    ConfigError: matplotlib is missing, or no point sets `sweep.x` to a number.
  """
  try:
    import matplotlib
  except ImportError:
    raise ConfigError('a plot needs matplotlib: pip install -e ".[sweeps]"') from None
  matplotlib.use("Agg")
  from matplotlib import pyplot

  count = len(sweep.metrics)
  height = 4.5 if sweep.x else max(2.5, 0.3 * len(rows) + 1)
  drawn, panels = pyplot.subplots(
    1,
    count,
    figsize=(8 * count if sweep.x else 6.5 * count, height),
    layout="constrained",
    squeeze=False,
  )
  try:
    for axis, metric in zip(panels[0], sweep.metrics, strict=True):
      if sweep.x:
        _along(axis, metric, sweep.x, rows)
      else:
        _lines(axis, metric, rows)
    drawn.savefig(file, dpi=120)
  finally:
    pyplot.close(drawn)


def _along(axis: Any, metric: str, key: str, rows: Sequence[Row]) -> None:
  """Means over the value of a key, with a curve for each setting of all else."""
  curves: dict[str, list[tuple[float, Row]]] = {}
  for row in rows:
    x = row.point.overrides.get(key)
    if isinstance(x, int | float) and not isinstance(x, bool):
      others = [label for name, label in row.point.labels.items() if name != key]
      curves.setdefault(", ".join(others), []).append((float(x), row))
  if not curves:
    raise ConfigError(f"x is {key!r}, which no point sets to a number")
  for number, (name, points) in enumerate(curves.items()):
    points.sort(key=lambda point: point[0])
    told = [(x, row) for x, row in points if row.means[metric].count]
    means = [row.means[metric] for _, row in told]
    halves = [mean.interval[1] - mean.value if mean.interval else math.nan for mean in means]
    line, *_ = axis.errorbar(
      [x for x, _ in told],
      [mean.value for mean in means],
      yerr=halves,
      marker="o",
      capsize=3,
      linestyle=_STYLES[number // _COLORS % len(_STYLES)],
      label=name or None,
    )
    for x, row in points:
      values = _finite(row, metric)
      axis.plot([x] * len(values), values, ".", color=line.get_color(), alpha=0.5)
      if _went_wrong(row, metric):
        axis.plot(x, 0.97, "x", color=line.get_color(), transform=axis.get_xaxis_transform())
  every = [x for points in curves.values() for x, _ in points]
  if min(every) > 0 and max(every) >= _LOG_FROM * min(every):
    axis.set_xscale("log")
  axis.set(xlabel=key, ylabel=metric)
  # Of two seeds intervals are many times as wide as what is to be seen.
  own = [row for points in curves.values() for _, row in points]
  figures = [value for row in own for value in _finite(row, metric)]
  if figures and (room := 0.08 * (max(figures) - min(figures))):
    axis.set_ylim(min(figures) - room, max(figures) + room)
  if len(curves) >= _BESIDE_FROM:
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
  elif any(curves):
    axis.legend()


def _lines(axis: Any, metric: str, rows: Sequence[Row]) -> None:
  """A line a point, the first on top."""
  for y, row in enumerate(rows):
    mean = row.means[metric]
    values = _finite(row, metric)
    axis.plot(values, [y] * len(values), ".", color="tab:blue", alpha=0.5)
    if mean.count:
      axis.plot(mean.value, y, "o", color="tab:blue")
    if mean.interval:
      axis.plot(mean.interval, [y, y], color="tab:blue")
    if _went_wrong(row, metric):
      axis.plot(0.985, y, "x", color="tab:red", transform=axis.get_yaxis_transform())
  axis.set_yticks(range(len(rows)), [row.point.name for row in rows])
  axis.invert_yaxis()
  axis.set(xlabel=metric)
  axis.grid(axis="x", alpha=0.3)


def _finite(row: Row, metric: str) -> list[float]:
  return [value for value in row.values[metric].values() if math.isfinite(value)]


def _went_wrong(row: Row, metric: str) -> bool:
  return bool(row.runs.get(runs.FAILED) or row.means[metric].not_finite)
