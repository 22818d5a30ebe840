"""Curates rows: what is worth training on, step by step, and a report of what is not.

  python -m research.curate --config=configs/curate.py [--config.KEY=VALUE ...]

The rows that are left become JSON lines, which training reads as {"name": "jsonl", "path": ...}.
Beside them is a report with examples of what each rule took away, NAME.report.json. A command that
was stopped goes on behind the last step that was done; one that is complete tells its report again.
Keys and steps are told in configs/base_curate.py; every key can be set on the command line:
--config.output=mine.jsonl.

Exit codes: 0 done, 2 something asked for cannot be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from research.core import command
from research.core import config as config_lib


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command with these arguments (by default the process's), and returns its code."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if {"-h", "--help"} & {*argv}:
    _parser().parse_args(["--help"])
  return command.run(lambda: _curate(argv))


def _parser() -> argparse.ArgumentParser:
  parser = command.parser("research.curate", __doc__)
  parser.add_argument("--config", required=True, metavar="FILE", help="what to curate, and how")
  return parser


def _curate(argv: list[str]) -> int:
  config = config_lib.from_command_line(argv)
  # Imported when the command line is known to be good: data sets take a second or two.
  from research import curation
  from research.core import cache
  from research.data import sources

  cache.keep_compiled(config.compilation_cache)
  steps = []
  for number, section in enumerate(config.steps):
    with config_lib.blaming(f"steps[{number}]"):
      step = config_lib.call(curation.STEPS, section)
    settings = section.take()
    steps.append((settings.pop("name"), step, settings))
  with config_lib.blaming("source"):
    source = sources.build(config.source)
  if not config.output:
    raise config_lib.ConfigError("config.output is empty; name a file NAME.jsonl")
  output, shown = Path(config.output), config.examples
  config.require_all_read()
  report = curation.curate(source, steps, output)
  print(_aligned(curation.table(report, shown)))
  for step in report["steps"]:
    for name, figure in step["figures"].items():
      print(f"{step['name']}, {name}: {_told(figure)}")
  print(f"\nsaved {output}: {report['rows']['out']:,} of {report['rows']['in']:,} rows")
  return 0


def _told(figure: object) -> str:
  """A figure as a line."""
  if isinstance(figure, dict):
    return ", ".join(f"{key} {_told(value)}" for key, value in figure.items())
  if isinstance(figure, list):
    return "; ".join(map(_told, figure))
  return f"{figure:.4g}" if isinstance(figure, float) else str(figure)


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
  """Columns side by side, those of numbers to the right."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.rjust(width) if number in (2, 3, 4) else cell.ljust(width)
      for number, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )


if __name__ == "__main__":
  sys.exit(main())
