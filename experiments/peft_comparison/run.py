"""One run in a process of its own, so that its memory is its own: trains, then evaluates.

`python -m experiments.peft_comparison` starts it; what it finds is DIRECTORY/found.json, and beside
the directory base.json, of the model as it was.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.peft_comparison import config as config_lib
from research import evals
from research.core import memory
from research.core.config import Config
from research.evals import Evaluator
from research.io.checkpoint import write_json
from research.io.metrics import read_json_lines
from research.loop.callbacks import Callback, Context
from research.loop.run import run

FOUND = "found.json"
BASE = "base.json"  # beside the runs


class Measure(Callback):
  """What a run costs, before its evaluation costs anything, and what it has learnt."""

  def __init__(self, evaluators: Sequence[Evaluator]):
    self._evaluators = evaluators

  def on_start(self, context: Context) -> None:
    """Measures the model as it is, for all runs beside this one, if none has yet."""
    file = context.directory.parent / BASE
    if not file.exists():
      write_json(file, self._results(context))

  def on_end(self, context: Context) -> None:
    """Writes all figures to `FOUND`."""
    peak = memory.peak_resident_bytes()
    lines = read_json_lines(context.directory / "metrics.jsonl")
    rates = [line["tokens"] / line["seconds"] for line in lines if "loss" in line]
    weights = context.directory / "adapter" / "adapter_model.safetensors"
    found: dict[str, Any] = {
      "peak_bytes": peak,
      "tokens_per_second": statistics.median(rates[1:]),  # without the step that compiles
      "adapter_bytes": weights.stat().st_size if weights.exists() else None,
      "losses": [line["loss"] for line in lines if "loss" in line],
    }
    write_json(context.directory / FOUND, found | self._results(context))

  def _results(self, context: Context) -> dict[str, Any]:
    task, variables = context.problem, context.variables
    results = [measure(task.model, variables, task.tokenizer) for measure in self._evaluators]
    return {result.name: result.to_json() for result in results}


def main() -> None:
  parser = argparse.ArgumentParser(prog="python -m experiments.peft_comparison.run")
  parser.add_argument("--method", required=True, choices=config_lib.METHODS)
  parser.add_argument("--rate", required=True, type=float)
  parser.add_argument("--seed", required=True, type=int)
  parser.add_argument("--steps", required=True, type=int)
  parser.add_argument("--directory", required=True, type=Path)
  parser.add_argument("--text", required=True, help="a file of unrelated text")
  args = parser.parse_args()
  made = config_lib.get_config(args.method, args.rate, args.seed, str(args.directory), args.steps)
  sections = [
    config_lib.problems(),
    {"name": "perplexity", "data": {"name": "text", "path": args.text}, "label": "text"},
  ]
  run(Config(made.to_dict()), callbacks=[Measure(evals.build(sections))])


if __name__ == "__main__":
  main()
