"""One run in a process of its own, so that its memory is its own: trains, then evaluates.

`python -m experiments.peft_comparison` starts it; what it finds is DIRECTORY/found.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import quickstart
from experiments.peft_comparison import config as config_lib
from research import evals
from research.core import cache, memory
from research.core.config import Config
from research.evals import Evaluator
from research.io.checkpoint import write_json
from research.io.metrics import read_json_lines
from research.loop import subject
from research.loop.callbacks import Callback, Context
from research.loop.run import run

FOUND = "found.json"


class Measure(Callback):
  """What a run costs, before its evaluation costs anything, and what it has learnt.

  evaluators: none, where costs are all that is asked for.
  """

  def __init__(self, evaluators: Sequence[Evaluator]):
    self._evaluators = evaluators

  def on_end(self, context: Context) -> None:
    """Writes all figures to `FOUND`."""
    peak = memory.peak_bytes()
    lines = read_json_lines(context.directory / "metrics.jsonl")
    rates = [line["tokens"] / line["seconds"] for line in lines if "loss" in line]
    weights = context.directory / "adapter" / "adapter_model.safetensors"
    found: dict[str, Any] = {
      "peak_bytes": peak,
      "tokens_per_second": statistics.median(rates[1:]),  # without the step that compiles
      "adapter_bytes": weights.stat().st_size if weights.exists() else None,
      "losses": [line["loss"] for line in lines if "loss" in line],
    }
    task = context.problem
    found |= results(self._evaluators, task.model, context.variables, task.tokenizer)
    write_json(context.directory / FOUND, found)


def results(
  evaluators: Sequence[Evaluator], model: Any, variables: Any, tokenizer: Any
) -> dict[str, Any]:
  """What each evaluator finds, by its name."""
  measured = [evaluator(model, variables, tokenizer) for evaluator in evaluators]
  return {result.name: result.to_json() for result in measured}


def main() -> None:
  """Runs what the flags say; without a method the model as it is is measured."""
  parser = argparse.ArgumentParser(prog="python -m experiments.peft_comparison.run")
  parser.add_argument("--method", choices=config_lib.METHODS, help="without one, the base")
  parser.add_argument("--rate", type=float, default=0.0)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--steps", type=int, default=0)
  parser.add_argument("--directory", required=True, type=Path)
  parser.add_argument("--text", help="a file of unrelated text; without one, nothing is evaluated")
  args = parser.parse_args()
  evaluators = evals.build(config_lib.evaluated(args.text)) if args.text else ()
  if args.method is None:
    cache.keep_compiled()
    base = quickstart.get_config().model
    found = subject.load_model(base.source, base.dtype)
    args.directory.mkdir(parents=True, exist_ok=True)
    told = results(evaluators, found.model, found.variables, found.tokenizer)
    write_json(args.directory / FOUND, told)
    return
  made = config_lib.get_config(args.method, args.rate, args.seed, str(args.directory), args.steps)
  run(Config(made.to_dict()), callbacks=[Measure(evaluators)])


if __name__ == "__main__":
  main()
