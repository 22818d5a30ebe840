"""Writes a model for other programs: merged, in few bits, as a directory or GGUF; or an adapter.

  python -m research.export --run=runs/quickstart --format=gguf --output=quickstart.gguf
  python -m research.export --model=MODEL --adapter=DIR --format=hf --output=merged
  python -m research.export --run=runs/quickstart --format=peft --output=adapter
  python -m research.export --model=MODEL --format=gguf --type=Q4_0 --output=model.gguf
  python -m research.export --model=MODEL --stretch=yarn:4 --format=hf --output=long
  python -m research.export --config=configs/quantize.py [--config.KEY=VALUE ...]

An adapter, or that of a run, is merged in float32; peft alone writes it as it is. A config says
more than flags: what is to be in few bits, by which method (nearest, GPTQ, AWQ) and calibrated by
which text, and it keeps layers that are done, so that the same command goes on after an
interruption. Its keys and what they mean are in configs/base_export.py; every one can be set on the
command line: --config.format=native.

Formats: hf, and gguf with codes of its own; peft, the adapter alone, unmerged; of parameters in
few bits gptq, awq, bitsandbytes and torchao (projections of layers, as those tools have them) and
native (anything, for --model here).

What was written is loaded again and compared, and only then has its name; nothing that exists is
overwritten. The last column is the largest difference of a parameter to what it was in memory.

Exit codes: 0 done, 2 something asked for cannot be.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from research.core import command
from research.core import config as config_lib
from research.loop import subject as subject_lib

_MERGED_IN = "float32"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command with these arguments (by default the process's), and returns its code."""
  argv = list(sys.argv[1:] if argv is None else argv)
  return command.run(lambda: _export(argv), traceback="--traceback" in argv)


def _export(argv: list[str]) -> int:
  if any(re.match(r"--?config\b", flag) for flag in argv) and not {"-h", "--help"} & {*argv}:
    output = _from_config([flag for flag in argv if flag != "--traceback"])
  else:
    output = _from_flags(_arguments(argv))
  print(f"\nsaved {output}")
  return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
  parser = command.parser("research.export", __doc__)
  what = parser.add_argument_group("what is written")
  what.add_argument(
    "--model", metavar="MODEL", help="a Hugging Face directory, a GGUF file or a known name"
  )
  what.add_argument("--adapter", metavar="DIR", help="an adapter of --model, in PEFT's format")
  what.add_argument(
    "--run", type=Path, metavar="DIR", help="a run's directory, in place of --model"
  )
  parser.add_argument(
    "--format", required=True, help="hf, gguf, peft, gptq, awq, bitsandbytes, torchao, or native"
  )
  parser.add_argument(
    "--type", help="of the matrices: float32 or bfloat16 of hf (float32); F32, F16, BF16, Q8_0, "
    "Q5_1, Q5_0, Q4_1 or Q4_0 of gguf (Q8_0); of what is not in few bits for the others; peft has "
    "float32 alone",
  )  # fmt: skip
  parser.add_argument(
    "--stretch", type=_stretch, metavar="KIND:FACTOR", help="rotary positions for rows FACTOR times"
    " as long, to be trained on with such rows: yarn:4 or linear:4",
  )  # fmt: skip
  parser.add_argument("--output", type=Path, required=True, metavar="PATH", help="where to")
  parser.add_argument("--traceback", action="store_true", help="on an error, where it was found")
  return subject_lib.parse(parser, argv)


def _stretch(text: str) -> tuple[str, float]:
  kind, _, factor = text.partition(":")
  return kind, float(factor)


def _from_flags(args: argparse.Namespace) -> Path:
  # Imported when the command line is known to be good: JAX takes a second or two.
  from research import models
  from research.models import formats

  form = formats.require(args.format, args.type)
  formats.require_free(args.output, form)
  if args.stretch and form.write is None:
    raise ValueError(f"--stretch changes the model, of which {args.format} holds nothing")
  subject, params = _read(form, args.model, args.adapter, args.run)
  if args.stretch:
    subject = dataclasses.replace(subject, model=models.stretched(subject.model, *args.stretch))
  _write(subject, params, args.output, args.format, args.type)
  return args.output


def _from_config(argv: list[str]) -> Path:
  config = config_lib.from_command_line(argv)
  from research.core import cache
  from research.models import formats

  output = Path(config.output)
  with config_lib.blaming("format"):
    form = formats.require(config.format, config.type or None)
  with config_lib.blaming("output"):
    if not config.output:
      raise ValueError("where to? give a path")
    formats.require_free(output, form)
  if bool(config.quantize) != bool(form.method):
    raise config_lib.ConfigError(
      f"config.quantize: format {config.format!r} holds"
      + (" what rules say, and there are none" if form.method else " no codes of ours; leave it")
    )
  with config_lib.blaming("model"):
    model, adapter, run = (config.model[key] for key in ("source", "adapter", "run"))
    if bool(model) == bool(run) or run and adapter:
      raise ValueError("give a source, maybe with an adapter, or a run")
    subject, params = _read(form, model, adapter, run and Path(run))
  if config.quantize:
    plan = _settled(config, form.method, subject, params)
  else:
    _require_no_method(config)
  cache.keep_compiled(config.compilation_cache)
  config.require_all_read()
  if config.quantize:
    params = plan.apply(subject.model, params, _told())
  _write(subject, params, output, config.format, config.type or None)
  return output


def _settled(config: config_lib.Config, method: str, subject: Any, params: Any) -> Any:
  """What the config says of rounding, with kinds chosen where rules leave them open.

  Raises:
    ConfigError: that cannot be, or the format has no place for it, whichever kinds are chosen.
  """
  from research import calibration, quant
  from research.core import matrix
  from research.models import quantized

  plan = calibration.plan(config, subject.tokenizer)
  shapes = {path: leaf.shape for path, leaf in matrix.flatten(params).items()}
  with config_lib.blaming("quantize"):
    if method != quantized.OURS and any("each" in rule for rule in plan.rules):
      raise ValueError(f"{method} has one scheme for all layers; 'each' is for format 'native'")
    for rules in plan.candidates():
      quantized.require(subject.model.config, quant.schemes(rules, params), shapes, method)
  with config_lib.blaming("bits"):
    settled = plan.settled(subject.model, params, _option_told())
  for rule in settled.rules:
    if rule not in plan.rules:
      print(f"chosen: {rule}")
  return settled


def _require_no_method(config: config_lib.Config) -> None:
  """Raises ConfigError if a config without rules says how to follow them."""
  says = {
    "bits": config.bits,
    "method": config.method.name != "nearest",
    "calibration.source": config.calibration.source,
    "directory": config.directory,
  }
  for key, value in says.items():
    if value:
      raise config_lib.ConfigError(f"config.{key} is how to follow `quantize`, which is empty")
  config.take()


def _read(form: Any, model: str, adapter: str, run: Path | None) -> tuple[Any, Any]:
  """The model, and what is written of it: its parameters with the adapter merged, or the adapter.

  Raises:
    ValueError: the adapter is to be written, and there is none.
  """
  from research import quant

  if form.write is None and not (adapter or run):
    raise ValueError(f"{model} is given no adapter, which is what is to be written")
  if run:
    subject = subject_lib.load_run(run, _MERGED_IN)
  else:
    subject = subject_lib.load_model(model, _MERGED_IN)
    if adapter:
      subject = subject_lib.with_adapter(subject, Path(adapter))
  if form.write is None:
    return subject, subject_lib.adapter(subject)
  params = subject_lib.merged(subject)
  if quant.size(params).held != quant.size(subject.variables["params"]).held:
    print("kernels in few bits that have an adapter are merged as the numbers they stand for")
  return subject, params


def _option_told() -> Callable[[Any], None]:
  """Says what a kind of a rule costs, or of a rule's part in a layer."""

  def told(option: Any) -> None:
    where = "" if option.layer is None else f", layer {option.layer}"
    print(
      f"rule {option.rule}{where}: {option.scheme.kind} takes {option.bytes:,} bytes and"
      f" {option.nats:+.4f} nats a token",
      flush=True,
    )

  return told


def _told() -> Callable[[int, int], None]:
  """Says which layer is done, and when."""
  started = time.perf_counter()

  def told(layer: int, layers: int) -> None:
    seconds = time.perf_counter() - started
    print(f"layer {layer} of {layers}, {seconds:.0f} s", flush=True)

  return told


def _write(subject: Any, params: Any, output: Path, format: str, type: str | None) -> None:
  import jax.numpy as jnp

  from research.core import matrix
  from research.models import formats

  model, tokenizer = subject.model, subject.tokenizer
  form = formats.FORMATS[format]
  if form.write is None:
    base = subject.variables["params"]
    found = formats.export_adapters(output, model, base, params, base_model=subject.base)
    print(_aligned(_files(found), numbers=range(1, 5)))
    return
  if not form.method and any(map(matrix.is_matrix, matrix.flatten(params).values())):
    print(f"{format} gets the numbers that kernels in few bits stand for")
  found = formats.export(output, model, params, tokenizer, format=format, type=type)
  if form.method:
    itemsize = jnp.dtype(type or form.default).itemsize
    print(_aligned(_sizes(params, itemsize), numbers=range(1, 5)) + "\n")
  print(_aligned(_files(found), numbers=range(1, 5)))


def _sizes(params: Any, itemsize: int) -> list[tuple[str, ...]]:
  """A line a kind of projection: what it takes in bfloat16 and in few bits, measured.

  itemsize: of what is not in few bits, in bytes.
  """
  from research import quant
  from research.core import matrix, tree

  rows: list[tuple[str, ...]] = [
    ("projection", "parameters", "bytes in bfloat16", "bytes", "bits a parameter")
  ]
  kinds: dict[str, list[int]] = {}
  for path, leaf in matrix.flatten(params).items():
    kind = path.removeprefix("layers/").removesuffix("/kernel")
    name = kind if matrix.is_matrix(leaf) else "all else"
    counts = kinds.setdefault(name, [0, 0])
    counts[0] += leaf.size
    parts = leaf.each if isinstance(leaf, quant.Mixed) else (leaf,)
    counts[1] += sum(
      tree.nbytes(part) if matrix.is_matrix(part) else itemsize * part.size for part in parts
    )
  kinds["all"] = [sum(counts) for counts in zip(*kinds.values(), strict=True)]
  for kind, (numbers, held) in kinds.items():
    bits = f"{8 * held / numbers:.3f}"
    rows.append((kind, f"{numbers:,}", f"{2 * numbers:,}", f"{held:,}", bits))
  return rows


def _files(found: Any) -> list[tuple[str, ...]]:
  """A line a file, and what is of all of them on the last."""
  head = ("file", "bytes", "parameters", "bytes a parameter", "largest difference", "at")
  rows: list[tuple[str, ...]] = [head]
  total = sum(found.files.values())
  whole = (f"{found.parameters:,}", f"{total / found.parameters:.3f}", f"{found.difference:.3g}")
  if len(found.files) > 1:
    rows += [(name, f"{size:,}", "", "", "", "") for name, size in found.files.items()]
    rows.append(("all", f"{total:,}", *whole, found.path))
  else:
    rows.append((*found.files, f"{total:,}", *whole, found.path))
  return rows


def _aligned(rows: Sequence[tuple[str, ...]], numbers: Sequence[int]) -> str:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    "  ".join(
      cell.rjust(width) if i in numbers else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main())
