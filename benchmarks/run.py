"""Measures us and our peers side by side: `python -m benchmarks.run --help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import environments, machine, table, worker
from benchmarks.works import PEERS, WORKS, Side, Work
from research.core import cache, tree
from research.models import named

GSM8K = "https://github.com/openai/grade-school-math (grade_school_math/data/train.jsonl)"


class Runner:
  """Runs workers, each in a process of its own."""

  def __init__(self, gguf: Path, gsm8k: Path | None, cache: Path, quick: bool, device: str):
    self._gguf = gguf
    self._gsm8k = gsm8k
    self._cache = cache
    self._quick = quick
    self._device = device

  def prepare(self, side: Side) -> list[str]:
    """The command of a side; makes its environment and its model where they are missing."""
    python = Path(sys.executable)
    if side.environment:
      python = environments.python_of(side.environment, self._cache)
    model = self._gguf
    if side.model == "encoder":
      model = named.fetch("all-minilm-l6-v2")
    elif side.model != "gguf":
      model = environments.hugging_face(self._gguf, side.model, self._cache)
    warmup, steps = (min(side.warmup, 1), 1) if self._quick else (side.warmup, side.steps)
    command = [str(python), "-m", side.module, *side.arguments, "--model", str(model.absolute())]
    return [*command, f"--warmup={warmup}", f"--steps={steps}", f"--device={self._device}"]

  def measure(self, work: Work, side: Side) -> dict[str, Any]:
    """The result of one run of a side."""
    command = self.prepare(side)
    if work.needs_gsm8k:
      command += ["--gsm8k", str(self._gsm8k.absolute())]
    return _run(command, self._device)


def _run(command: Sequence[str], device: str) -> dict[str, Any]:
  """The JSON on the last line of a worker's output.

  Raises:
    RuntimeError: the worker failed; the message holds the end of what it said.
  """
  done = subprocess.run(
    command,
    cwd=environments.ROOT,
    env=environments.variables(device),
    capture_output=True,
    text=True,
  )
  if done.returncode:
    said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
    raise RuntimeError(f"{' '.join(command)} ended with code {done.returncode}:\n{said}")
  return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
  """Runs the works that the command line names and prints the table of ratios."""
  args = _parse()
  runner = Runner(_gguf(args.gguf), args.gsm8k, args.cache, args.quick, args.device)
  works = [WORKS[name] for name in args.works]
  sides = {
    work.name: [work.ours, *(peer for peer in work.peers if peer.name in args.peers)]
    for work in works
  }
  for work in works:
    for side in sides[work.name]:
      runner.prepare(side)
  if warning := machine.busy():
    print(warning, file=sys.stderr)
  results: dict[str, dict[str, list[dict[str, Any]]]] = {}
  for work in works:
    found = results[work.name] = {side.name: [] for side in sides[work.name]}
    for turn in range(args.rounds):
      # Sides take turns, so that a machine that slows down does so for all of them.
      for side in sides[work.name]:
        print(f"{work.name} {turn + 1}/{args.rounds} {side.name}: ", end="", file=sys.stderr)
        sys.stderr.flush()
        result = runner.measure(work, side)
        print(_told(result), file=sys.stderr)
        found[side.name].append(result)
        if not work.compares_methods:
          _require_same_size(work, found)
        if args.json:
          _write(args.json, results)
  print(table.render(results))


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.run",
    description="Ours, the peer's and the ratio, by rounds in which the sides take turns.",
  )
  parser.add_argument(
    "works", nargs="*", metavar="WORK", help=f"any of {', '.join(WORKS)}; all of them by default"
  )
  parser.add_argument(
    "--peers", default=",".join(PEERS), help=f"comma-separated, of {', '.join(PEERS)} (all)"
  )
  parser.add_argument("--rounds", type=int, default=3, help="runs of each side (3)")
  parser.add_argument("--json", type=Path, help="write all results and the machine here")
  parser.add_argument(
    "--gguf",
    type=Path,
    default=os.environ.get("RESEARCH_SMOLLM2_GGUF"),
    help="SmolLM2-135M-Instruct as a GGUF file (fetched, or $RESEARCH_SMOLLM2_GGUF)",
  )
  parser.add_argument("--gsm8k", type=Path, help=f"train.jsonl of GSM8K, for sft: {GSM8K}")
  parser.add_argument(
    "--cache",
    type=Path,
    default=cache.directory(),
    help="holds the peers' environments and the converted model (%(default)s)",
  )
  parser.add_argument(
    "--device", choices=worker.DEVICES, default="cpu", help="what all sides run on (cpu)"
  )
  parser.add_argument(
    "--quick", action="store_true", help="one timed step each: does everything run?"
  )
  args = parser.parse_args()
  args.works = args.works or [name for name in WORKS if args.device in WORKS[name].devices]
  args.peers = args.peers.split(",")
  for kind, given, known in (("work", args.works, WORKS), ("peer", args.peers, PEERS)):
    for name in given:
      if name not in known:
        known_names = f"known: {', '.join(known)}{tree.nearest(name, known)}"
        parser.error(f"no {kind} is named {name!r}; {known_names}")
  for name in args.works:
    if args.device not in WORKS[name].devices:
      able = ", ".join(work.name for work in WORKS.values() if args.device in work.devices)
      parser.error(f"{name} is not for --device={args.device}; {able} are")
  if any(WORKS[name].needs_gsm8k for name in args.works) and not args.gsm8k:
    parser.error(f"sft needs --gsm8k PATH, the file train.jsonl from {GSM8K}")
  if args.rounds < 1:
    parser.error("--rounds starts at 1")
  return args


def _gguf(given: str | Path | None) -> Path:
  if given is None:
    return named.fetch("smollm2-135m-instruct")
  path = Path(given)
  if not path.is_file():
    raise FileNotFoundError(f"no GGUF file at {path}")
  return path


def _told(result: dict[str, Any]) -> str:
  if "startup_seconds" in result:
    return f"{result['startup_seconds']:.1f} s"
  peak = result["peak_bytes"] / 1e9
  for unit in ("tokens", "items"):
    if f"{unit}_per_second" in result:
      return f"{result[f'{unit}_per_second']:.1f} {unit}/s, peak {peak:.2f} GB"
  raise ValueError(f"a worker told no rate, only {', '.join(result)}")


def _require_same_size(work: Work, found: dict[str, list[dict[str, Any]]]) -> None:
  """Raises ValueError where sides train different numbers of parameters."""
  sizes = {
    name: runs[-1]["trainable"] for name, runs in found.items() if runs and "trainable" in runs[-1]
  }
  if len(set(sizes.values())) > 1:
    raise ValueError(f"{work.name} is not the same work on all sides: trainable {sizes}")


def _write(path: Path, results: dict[str, Any]) -> None:
  rows = [dataclasses.asdict(row) for row in table.rows(results)]
  told = {"machine": machine.describe(), "table": rows, "results": results}
  path.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
  try:
    main()
  except (FileNotFoundError, RuntimeError, ValueError) as error:
    sys.exit(f"error: {error}")
