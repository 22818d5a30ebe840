"""What a run tells at its end: what training changed, in figures and in words."""

from __future__ import annotations

import json
from pathlib import Path

from research import evals
from research.loop.callbacks import Callback, Context
from research.models import Encoder

SHOWN = 3  # samples of each evaluator


class Report(Callback):
  """Compares the last evaluation with the one before the first step, and says how to go on."""

  def on_end(self, context: Context) -> None:
    """Prints the comparison, samples before and after, and the commands that use the result."""
    directory = context.directory / "evaluations"
    before, after = (_results(directory / f"{step}.json") for step in (0, context.total_steps))
    for name in before.keys() & after.keys():
      differences = evals.compare(after[name], before[name])
      context.say("\n" + evals.comparison_table(differences, "after", "before"))
      samples = zip(before[name].samples[:SHOWN], after[name].samples[:SHOWN], strict=False)
      for old, new in samples:
        context.say(f"\nbefore  {_indented(old)}\nafter   {_indented(new)}")
    run = context.directory
    if isinstance(context.problem.model, Encoder):  # which does not write
      context.say(f"\nsaved in {run}")
      return
    context.say(
      f"\nsaved in {run}; to talk with the result:"
      f"\n  python -m research.generate --run={run} --chat"
    )


def _results(file: Path) -> dict[str, evals.Result]:
  if not file.exists():
    return {}
  saved = json.loads(file.read_text())["results"]
  return {result["name"]: evals.Result.from_json(result) for result in saved}


def _indented(text: str) -> str:
  return text.strip().replace("\n", "\n        ")
