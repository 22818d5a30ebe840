"""lm-evaluation-harness on our model; needs the extra 'harness'."""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax.numpy as jnp

from benchmarks import worker, workloads
from research import evals, models


def main() -> None:
  """Scores the items and prints the figures as a line of JSON."""
  args = worker.parser(__doc__).parse_args()
  model, params, tokenizer = models.load(args.model, dtype=jnp.bfloat16)
  found = []
  with tempfile.TemporaryDirectory() as name:
    evaluator = evals.Harness([workloads.choice_task(Path(name))], batch_size=32)
    seconds = worker.time_steps(
      lambda: found.append(evaluator(model, {"params": params}, tokenizer)),
      warmup=args.warmup,
      steps=args.steps,
    )
  worker.report(
    ("jax", "flax", "lm_eval"),
    items_per_second=worker.median_rate(seconds, workloads.CHOICE_ITEMS),
    seconds=seconds,
    figures=found[-1].metrics,
  )


if __name__ == "__main__":
  main()
