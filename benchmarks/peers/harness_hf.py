"""lm-evaluation-harness on its own model of Hugging Face checkpoints."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM

from benchmarks import worker, workloads


def main() -> None:
  """Scores the items and prints the figures as a line of JSON."""
  parser = worker.parser(__doc__)
  parser.add_argument("--batch-size", type=int, default=8, help="default: 8")
  args = parser.parse_args()
  lm = HFLM(pretrained=str(args.model), dtype="bfloat16", device="cpu", batch_size=args.batch_size)
  found = []
  with tempfile.TemporaryDirectory() as name:
    task = workloads.choice_task(Path(name))
    seconds = worker.time_steps(
      lambda: found.append(evaluator.simple_evaluate(lm, tasks=[task])),
      warmup=args.warmup,
      steps=args.steps,
    )
  worker.report(
    ("torch", "transformers", "lm_eval"),
    items_per_second=worker.median_rate(seconds, workloads.CHOICE_ITEMS),
    seconds=seconds,
    figures={key: value for key, value in found[-1]["results"]["choices"].items() if "," in key},
  )


if __name__ == "__main__":
  main()
