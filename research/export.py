"""Writes a model for other programs: a Hugging Face directory or a GGUF file.

  python -m research.export --run=runs/quickstart --format=gguf --output=quickstart.gguf
  python -m research.export --model=MODEL --adapter=DIR --format=hf --output=merged
  python -m research.export --model=MODEL --format=gguf --type=Q4_0 --output=model.gguf

An adapter, or that of a run, is merged in float32. What was written is loaded again and compared,
and only then has its name; nothing that exists is overwritten. The last column is the largest
difference of a parameter to the merged float32 model.

Exit codes: 0 done, 2 something asked for cannot be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.loop import subject as subject_lib

_MERGED_IN = "float32"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command with these arguments (by default the process's), and returns its code."""
  args = _arguments(list(sys.argv[1:] if argv is None else argv))
  try:
    print(_table(_export(args)))
  except (ValueError, FileNotFoundError, RuntimeError) as error:
    if args.traceback:
      raise
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"\nsaved {args.output}")
  return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
  summary, _, more = (__doc__ or "").partition("\n")
  parser = argparse.ArgumentParser(
    prog="python -m research.export",
    description=summary,
    epilog=more,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  what = parser.add_argument_group("what is written")
  what.add_argument(
    "--model", metavar="MODEL", help="a Hugging Face directory, a GGUF file or a known name"
  )
  what.add_argument("--adapter", metavar="DIR", help="an adapter of --model, in PEFT's format")
  what.add_argument(
    "--run", type=Path, metavar="DIR", help="a run's directory, in place of --model"
  )
  parser.add_argument("--format", required=True, help="hf (a directory) or gguf (a file)")
  parser.add_argument(
    "--type", help="of the matrices: float32 or bfloat16 of hf (float32); F32, F16, BF16, Q8_0, "
    "Q5_1, Q5_0, Q4_1 or Q4_0 of gguf (Q8_0)",
  )  # fmt: skip
  parser.add_argument("--output", type=Path, required=True, metavar="PATH", help="where to")
  parser.add_argument("--traceback", action="store_true", help="on an error, where it was found")
  args = parser.parse_args(argv)
  if bool(args.run) == bool(args.model):
    parser.error("give one of --model and --run")
  if args.run and args.adapter:
    parser.error("--run names its adapter itself; leave --adapter out")
  return args


def _export(args: argparse.Namespace) -> Any:
  # Imported when the command line is known to be good: JAX takes a second or two.
  from research import peft
  from research.models import formats

  formats.require_free(args.output, formats.require(args.format, args.type))
  if args.run:
    subject = subject_lib.require_one(subject_lib.load_run(args.run, _MERGED_IN))
  else:
    subject = subject_lib.load_model(args.model, _MERGED_IN)
    if args.adapter:
      subject = subject_lib.with_adapter(subject, Path(args.adapter))
  params = subject.variables["params"]
  if adapters := subject.variables.get("adapters"):
    params = peft.merge(params, adapters)
  return formats.export(
    args.output, subject.model, params, subject.tokenizer, format=args.format, type=args.type
  )


def _table(found: Any) -> str:
  """A line a file, and what is of all of them on the last."""
  rows = [("file", "bytes", "parameters", "bytes a parameter", "largest difference", "at")]
  total = sum(found.files.values())
  whole = (f"{found.parameters:,}", f"{total / found.parameters:.3f}", f"{found.difference:.3g}")
  if len(found.files) > 1:
    rows += [(name, f"{size:,}", "", "", "", "") for name, size in found.files.items()]
    rows.append(("all", f"{total:,}", *whole, found.path))
  else:
    rows.append((*found.files, f"{total:,}", *whole, found.path))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    "  ".join(
      cell.rjust(width) if 1 <= i <= 4 else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main())
