"""Steps of curation one after the other, from a source to a file, through interruptions.

Beside the rows, `NAME.jsonl`, are `NAME.report.json` and `NAME.steps/`, where each step that is
done leaves which rows it took away, under a hash of the source and of all steps so far. So the same
command goes on after an interruption, and one whose last steps were changed does only those again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.curation.step import Ledger, Rows, Step
from research.data import texts
from research.data.examples import BadRow
from research.data.source import Source, fingerprint

_LAYOUT = 2  # part of the hash: raise it when steps judge otherwise
Report = dict[str, Any]


class _Readable(Step):
  """What comes before all other steps: rows that can be read and have a text."""

  def judge(self, rows: Rows, ledger: Ledger) -> None:
    for position in rows.positions("reading"):
      try:
        text = rows.text(position)
      except BadRow as error:
        ledger.drop(position, error.reason, error.detail, "")
        continue
      if not text.strip():
        ledger.drop(position, "without a text", f"texts are in {', '.join(texts.COLUMNS)}", "")


def curate(
  source: Source, steps: Sequence[tuple[str, Step, Mapping[str, Any]]], output: Path
) -> Report:
  """Writes the rows of `source` that all `steps` leave, as JSON lines, and says what they did.

  Args:
    source: what is curated.
    steps: name, step and, for JSON, the settings that it was made of.
    output: a file that ends in `.jsonl`.

  Returns:
    What `NAME.report.json` holds: `source`, `rows` (`in`, `out`), `steps`, each with `name`,
    `settings`, `in`, `out`, `rules` (rule -> `rows` and `examples`), `figures` and `seconds`.

  Raises:
    ValueError: the output is no such file, or exists and is of another source or other steps; or as
      a step says.
  """
  if output.suffix != ".jsonl":
    raise ValueError(f"rows are written as JSON lines, to a file NAME.jsonl, not {str(output)!r}")
  report_file = output.with_suffix(".report.json")
  chain = [_LAYOUT, source.fingerprint]
  keys = []
  for name, step, settings in (("readable", _Readable(), {}), *steps):
    chain = [*chain, [name, settings, step.reads()]]
    keys.append(fingerprint(chain))
  if output.exists():
    known = json.loads(report_file.read_text()) if report_file.exists() else {}
    if known.get("fingerprint") != keys[-1]:
      raise ValueError(f"{output} is of another source or other steps; remove it, or name another")
    return known
  rows = Rows(source, np.arange(len(source)))
  entries = []
  for number, (name, step, settings) in enumerate((("readable", _Readable(), {}), *steps)):
    directory = output.with_suffix(".steps") / f"{number:02d}-{name}-{keys[number]}"
    rows, entry = _done(step, rows, directory)
    entries.append({"name": name, "settings": settings, **entry})
  report: Report = {
    "source": source.name,
    "fingerprint": keys[-1],
    "rows": {"in": len(source), "out": len(rows)},
    "lost in preparation": source.report.to_json(),
    "steps": entries,
  }
  with _whole(report_file) as file:
    file.write_text(json.dumps(report, indent=2, ensure_ascii=False))
  with _whole(output) as file, file.open("w", encoding="utf-8") as opened:
    for position in rows.positions("writing"):
      opened.write(json.dumps(rows[position], ensure_ascii=False) + "\n")
  return report


def _done(step: Step, rows: Rows, directory: Path) -> tuple[Rows, dict[str, Any]]:
  """What is left of `rows` behind a step, and what it tells; from its directory, if it was done."""
  found, told = directory / "found.npz", directory / "told.json"
  if not found.exists():
    directory.mkdir(parents=True, exist_ok=True)
    ledger, started = Ledger(rows, directory), time.perf_counter()
    step.judge(rows, ledger)
    entry = {
      "in": len(rows),
      "out": int((~ledger.dropped).sum()),
      "rules": ledger.rules,
      "figures": ledger.figures,
      "seconds": round(time.perf_counter() - started, 1),
    }
    columns = {f"column {name}": values for name, values in ledger.columns.items()}
    told.write_text(json.dumps(entry, ensure_ascii=False))
    with _whole(found) as file, file.open("wb") as opened:  # the last: it says that all is there
      np.savez(opened, dropped=ledger.dropped, **columns)  # type: ignore[arg-type]
  with np.load(found) as arrays:
    columns = dict(rows.columns)
    for key in arrays.files:
      if key != "dropped":
        values = np.full(len(rows.source), np.nan)
        values[rows.indices] = arrays[key]
        columns[key.removeprefix("column ")] = values
    left = dataclasses.replace(
      rows,
      indices=rows.indices[~arrays["dropped"]],
      columns=columns,
      changes=(*rows.changes, step.changed),
    )
  return left, json.loads(told.read_text())


@contextlib.contextmanager
def _whole(path: Path) -> Any:
  """A file beside `path` to write, which gets its name when that is done."""
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_name(f"{path.name}.{os.getpid()}.incomplete")
  try:
    yield beside
    beside.replace(path)
  finally:
    beside.unlink(missing_ok=True)


def table(report: Report, examples: int) -> list[tuple[str, ...]]:
  """A line a rule, under a line of titles: step, rule, rows, their share, rows left, examples."""
  lines: list[tuple[str, ...]] = [("step", "rule", "rows", "share", "left", "for example")]
  lines.append(("", "", "", "", f"{report['rows']['in']:,}", ""))
  for step in report["steps"]:
    for rule, found in sorted(step["rules"].items(), key=lambda item: -item[1]["rows"]):
      shown = "; ".join(f"row {e['row']}: {e['detail']}" for e in found["examples"][:examples])
      share = f"{found['rows'] / max(1, step['in']):.1%}"
      lines.append((step["name"], rule, f"{found['rows']:,}", share, "", shown))
    lines.append((step["name"], "", "", "", f"{step['out']:,}", ""))
  return lines
