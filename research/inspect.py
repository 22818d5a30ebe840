"""Tells what an adapter's directory holds, by its files alone.

  python -m research.inspect runs/quickstart
  python -m research.inspect path/to/adapter --model=smollm2-135m-instruct
  python -m research.inspect path/to/adapter --json

The directory is an adapter's, in PEFT's or AdapterHub's format, or that of a run or of several
adapters by name. For each it tells the method, the base, its ranks, and the modules that it
touches: in which layers, of what shapes, how large; and tensors that the method has no place for.
With --model the base is loaded, and whether the adapter fits is told: names, shapes, vocabulary.

Exit codes: 0 done, 1 an adapter has tensors without a place or does not fit --model, 2 something
asked for cannot be.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.core import command


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command with these arguments (by default the process's), and returns its code."""
  args = _arguments(list(sys.argv[1:] if argv is None else argv))
  return command.run(lambda: _inspect(args))


def _inspect(args: argparse.Namespace) -> int:
  # Imported when the command line is known to be good: JAX takes a second or two.
  from research.peft.interchange import contents

  places = contents.find(args.directory)
  found = {name: (path, contents.inspect(path)) for name, path in places.items()}
  misfits = _misfits(args.model, places)
  if args.json:
    print(json.dumps([_record(n, *one, misfits) for n, one in found.items()], indent=1))
  else:
    tables = [_table(*one, *_fit(args.model, misfits, name)) for name, one in found.items()]
    print("\n\n".join(tables))
  return int(any(one.unplaced for _, one in found.values()) or any(misfits.values()))


def _arguments(argv: list[str]) -> argparse.Namespace:
  parser = command.parser("research.inspect", __doc__)
  parser.add_argument("directory", type=Path, metavar="DIR", help="an adapter's, or a run's")
  parser.add_argument(
    "--model", metavar="MODEL", help="does it fit this base? a directory, GGUF file or known name"
  )
  parser.add_argument("--json", action="store_true", help="for machines")
  return parser.parse_args(argv)


def _misfits(source: str | None, places: dict[str, Path]) -> dict[str, str | None]:
  """Why each adapter does not fit the base, None if it does; empty without a base."""
  if source is None:
    return {}
  from research import models, peft
  from research.models import families

  model, params, _ = models.load(source)
  modules = families.find(model.config.family).modules(model.config)
  found: dict[str, str | None] = {}
  for name, path in places.items():
    try:
      peft.load(path, params, modules)
      found[name] = None
    except ValueError as error:
      found[name] = str(error)
  return found


def _record(name: str, path: Path, found: Any, misfits: dict[str, str | None]) -> dict[str, Any]:
  record = {"name": name, "directory": str(path), **dataclasses.asdict(found)}
  record |= {"parameters": found.parameters, "bytes": found.bytes}
  if name in misfits:
    record |= {"fits": misfits[name] is None, "misfit": misfits[name]}
  return record


def _fit(source: str | None, misfits: dict[str, str | None], name: str) -> list[str]:
  """A line on whether the adapter fits, if that was asked."""
  if name not in misfits:
    return []
  return [f"does not fit {source}: {misfits[name]}" if misfits[name] else f"fits {source}"]


def _table(path: Path, found: Any, *notes: str) -> str:
  settings = [f"{key} {json.dumps(value)}" for key, value in found.settings.items()]
  lines = [
    str(path),
    f"method  {found.method}",
    f"base    {found.base or 'not told'}",
    *([f"with    {', '.join(settings)}"] if settings else []),
    "",
  ]
  rows = [("module", "layers", "shapes", "parameters", "bytes", "dtype")]
  for family in found.families:
    shapes = ", ".join(f"{_short(end)} {_shape(each)}" for end, each in family.shapes.items())
    sizes = (f"{family.parameters:,}", f"{family.bytes:,}", "/".join(family.dtypes))
    rows.append((family.module, _numbers(family.layers), shapes, *sizes))
  rows.append(("all", "", "", f"{found.parameters:,}", f"{found.bytes:,}", ""))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    cells = [
      cell.rjust(width) if 3 <= i <= 4 else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    lines.append("  ".join(cells).rstrip())
  if found.unplaced:
    lines += ["", f"{len(found.unplaced)} tensors have no place: {', '.join(found.unplaced[:6])}"]
  for note in notes:
    lines += ["", note]
  return "\n".join(lines)


def _short(end: str) -> str:
  return end.removesuffix(".weight")


def _shape(shapes: list[list[int]]) -> str:
  """`[4, 576]`, or `[2-4, 576]` where layers differ."""
  if len({len(shape) for shape in shapes}) > 1:
    return " or ".join(map(str, shapes))
  axes = [sorted(set(axis)) for axis in zip(*shapes, strict=True)]
  return f"[{', '.join(str(a[0]) if len(a) == 1 else f'{a[0]}-{a[-1]}' for a in axes)}]"


def _numbers(layers: list[int]) -> str:
  """0, 1, 2, 5 is `0-2,5`."""
  runs: list[list[int]] = []
  for layer in layers:
    if runs and layer == runs[-1][-1] + 1:
      runs[-1] = [runs[-1][0], layer]
    else:
      runs.append([layer])
  return ",".join("-".join(map(str, run)) for run in runs) or "-"


if __name__ == "__main__":
  sys.exit(main())
