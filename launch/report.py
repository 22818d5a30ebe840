"""The sweep's results as files: REPORT.md, results.csv, runs.csv, plot.png and report.html.

REPORT.md and the page hold the same tables; the page is one file, with the plot inside it.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from launch import plot, process, runs
from launch.description import Sweep
from launch.points import Point
from launch.results import Interval, Mean, Row
from launch.runs import Run

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0 2em; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ccc; padding: .25em .8em; text-align: left; }
img { max-width: 100%; }
"""


@dataclasses.dataclass(frozen=True)
class _Table:
  title: str
  heading: Sequence[str]
  lines: Sequence[Sequence[str]]


def write(
  name: str, sweep: Sweep, rows: Sequence[Row], directory: Path, best: Point | None = None
) -> None:
  """Writes all five files.

  Args:
    name: the sweep's.
    sweep: its description.
    rows: what was found.
    directory: where to.
    best: the best trial of a search.

  Raises:
    ConfigError: matplotlib is missing.
  """
  every = [run for row in rows for each in row.runs.values() for run in each]
  tables = [_of_metric(metric, rows) for metric in sweep.metrics]
  tables += [table for table in (_failures(every), _of_points(rows)) if table.lines]
  told = _summary(sweep, every) + (f" Best trial: {best.name}." if best else "")
  directory.mkdir(parents=True, exist_ok=True)
  picture = directory / "plot.png"
  plot.draw(sweep, rows, picture)
  parts = [f"# {name}", told, *map(_markdown, tables), f"![{', '.join(sweep.metrics)}](plot.png)"]
  (directory / "REPORT.md").write_text("\n\n".join(parts) + "\n")
  (directory / "report.html").write_text(_page(name, told, tables, picture))
  _csv(directory / "results.csv", _results(rows))
  _csv(directory / "runs.csv", _runs(every, rows, sweep.metrics))


def _summary(sweep: Sweep, every: Sequence[Run]) -> str:
  states = [runs.state(run) for run in every]
  counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(sorted(states)))
  revisions = sorted({_revision(run) for run in every} - {""})
  return (
    f"Runs of {sweep.config} from seeds {', '.join(map(str, sweep.seeds))}: {counts}. Intervals are"
    " of 95 %; over seeds Student's, over items a paired bootstrap. Differences are paired by seed."
    + (f" Revision {', '.join(revisions)}." if revisions else "")
  )


def _revision(run: Run) -> str:
  """The revision that the run began with; "" where it tells none."""
  file = run.directory / "environment.json"
  if not file.exists():
    return ""
  git = json.loads(file.read_text())[0]["git"]
  return (git["revision"][:12] + (" with changes" if git["dirty"] else "")) if git else ""


def _of_metric(metric: str, rows: Sequence[Row]) -> _Table:
  compared = any(metric in row.differences for row in rows)
  items = any(row.differences[metric].over_items for row in rows if metric in row.differences)
  heading = ["point", "seeds", "mean", "95 % over seeds"]
  heading += ["against", "difference", "95 % over seeds"] if compared else []
  heading += ["95 % over items"] if items else []
  lines = []
  for row in rows:
    mean = row.means[metric]
    line = [row.point.name, str(mean.count), number(mean.value), interval(mean.interval)]
    if difference := row.differences.get(metric):
      over = difference.over_seeds
      line += [difference.baseline, number(over.value, "+"), interval(over.interval, "+")]
      line += [interval(difference.over_items, "+")] if items else []
    line += [""] * (len(heading) - len(line))
    lines.append([*line, "; ".join(_notes(row, mean))])
  return _Table(metric, [*heading, ""], lines)


def _notes(row: Row, mean: Mean) -> Iterable[str]:
  total = sum(map(len, row.runs.values()))
  for state, each in row.runs.items():
    if state != runs.COMPLETE:
      yield f"{len(each)} of {total} {state}"
  if mean.not_finite:
    yield f"{mean.not_finite} of {total} not finite and not in the mean"
  missing = len(row.runs.get(runs.COMPLETE, ())) - mean.count - mean.not_finite
  if missing:
    yield f"{missing} of {total} do not tell it"
  if mean.count == 1:
    yield "one seed: no interval"


def _failures(every: Sequence[Run]) -> _Table:
  lines = []
  for run in every:
    if runs.state(run) == runs.FAILED:
      tried = runs.attempts(run)
      lines.append([run.name, str(len(tried)), tried[-1].error, str(process.log(run))])
  return _Table("Failed runs", ["run", "attempts", "error", "log"], lines)


def _of_points(rows: Sequence[Row]) -> _Table:
  lines = [
    [row.point.name, ", ".join(f"{key} = {_shown(v)}" for key, v in row.point.overrides.items())]
    for row in rows
    if row.point.overrides
  ]
  return _Table("What the points set", ["point", "differences from the config"], lines)


def _shown(value: object) -> str:
  return f"{value:.6g}" if isinstance(value, float) else str(value)


def number(value: float, sign: str = "") -> str:
  """A figure to four digits; "" where there is none."""
  return "" if math.isnan(value) else f"{value:{sign}.4g}"


def interval(ends: Interval | None, sign: str = "") -> str:
  """Both ends to four digits; "" where there is none."""
  return "" if ends is None else f"[{number(ends[0], sign)}, {number(ends[1], sign)}]"


def _markdown(table: _Table) -> str:
  def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

  rule = line(["---"] * len(table.heading))
  return "\n".join([f"## {table.title}\n", line(table.heading), rule, *map(line, table.lines)])


def _page(name: str, told: str, tables: Sequence[_Table], picture: Path) -> str:
  def line(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

  data = base64.b64encode(picture.read_bytes()).decode()
  parts = [
    "<!doctype html>",
    '<html lang="en">',
    f'<head><meta charset="utf-8"><title>{html.escape(name)}</title><style>{_STYLE}</style></head>',
    f"<body>\n<h1>{html.escape(name)}</h1>\n<p>{html.escape(told)}</p>",
    f'<img alt="the figures of the first table and their intervals" '
    f'src="data:image/png;base64,{data}">',
  ]
  for table in tables:
    parts += [f"<h2>{html.escape(table.title)}</h2>", "<table>", line(table.heading, "th")]
    parts += [*(line(cells, "td") for cells in table.lines), "</table>"]
  return "\n".join([*parts, "</body>", "</html>"]) + "\n"


def _results(rows: Sequence[Row]) -> Iterable[Mapping[str, object]]:
  """A line a point and metric, all digits."""
  for row in rows:
    for metric, mean in row.means.items():
      low, high = mean.interval or ("", "")
      line = {
        "point": row.point.name,
        "metric": metric,
        "seeds": mean.count,
        "mean": "" if math.isnan(mean.value) else mean.value,
        "low": low,
        "high": high,
        "not_finite": mean.not_finite,
        "failed": len(row.runs.get(runs.FAILED, ())),
        "incomplete": sum(len(each) for s, each in row.runs.items() if s != runs.COMPLETE),
      }
      if difference := row.differences.get(metric):
        over = difference.over_seeds
        names = ("against", "difference", "difference_low", "difference_high")
        ends = over.interval or ("", "")
        line |= dict(zip(names, (difference.baseline, over.value, *ends), strict=True))
        if difference.over_items:
          line["items_low"], line["items_high"] = difference.over_items
      yield line


def _runs(
  every: Sequence[Run], rows: Sequence[Row], metrics: Sequence[str]
) -> Iterable[Mapping[str, object]]:
  """A line a run."""
  values = {row.point.name: row.values for row in rows}
  for run in every:
    tried = runs.attempts(run)
    found = {m: values[run.point.name][m].get(run.seed, "") for m in metrics}
    yield {
      "point": run.point.name,
      "seed": run.seed,
      "state": runs.state(run),
      **found,
      "attempts": len(tried),
      "seconds": sum(attempt.seconds for attempt in tried),
      "error": tried[-1].error if tried else "",
      "directory": run.directory,
    }


def _csv(file: Path, lines: Iterable[Mapping[str, object]]) -> None:
  """Columns in the order in which they first occur."""
  each = list(lines)
  columns = dict.fromkeys(column for line in each for column in line)
  with file.open("w", newline="") as opened:
    writer = csv.DictWriter(opened, list(columns), restval="")
    writer.writeheader()
    writer.writerows(each)
