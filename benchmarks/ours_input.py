"""The data pipeline alone: packed batches of GSM8K chats, as `ours_train sft` takes them."""

from __future__ import annotations

from pathlib import Path

from benchmarks import config as settings
from benchmarks import ours_train, worker
from research import models


def main() -> None:
  """Takes batches as fast as they come, and prints the rate as a line of JSON."""
  parser = worker.parser(__doc__)
  parser.add_argument("--gsm8k", type=Path, required=True, help="train.jsonl of GSM8K")
  args = parser.parse_args()
  _, _, tokenizer = models.load(args.model)
  config = settings.get_config(str(args.model))
  useful: list[int] = []
  with ours_train.gsm8k_batches(config, tokenizer, args) as batches:
    seconds = worker.time_steps(
      lambda: useful.append(int((next(batches)["segments"] > 0).sum())),
      warmup=args.warmup,
      steps=args.steps,
    )
  rate = worker.total_rate(seconds, useful[args.warmup :])
  worker.report(("grain",), tokens_per_second=rate, seconds=seconds)


if __name__ == "__main__":
  main()
