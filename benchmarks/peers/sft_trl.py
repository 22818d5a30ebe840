"""Supervised fine-tuning of TRL: SFTTrainer, LoRA, bfloat16 weights, no checkpointing.

Every unpadded token of a batch counts as useful, the prompt's too.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import trl
from transformers import AutoTokenizer, TrainerCallback

from benchmarks import worker, workloads
from benchmarks.peers import lora_peft


class Clock(TrainerCallback):
  """When each step ended; a step's time includes the collation of its batch."""

  def __init__(self) -> None:
    self.ends: list[float] = []

  def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
    self.ends.append(time.perf_counter())

  def on_step_end(self, *args: Any, **kwargs: Any) -> None:
    self.ends.append(time.perf_counter())


class CountingCollator:
  """The trainer's own collator, keeping the unpadded and the padded size of each batch."""

  def __init__(self, collator: Any) -> None:
    self.collator = collator
    self.useful: list[int] = []
    self.padded: list[int] = []

  def __call__(self, examples: list[Any]) -> dict[str, torch.Tensor]:
    batch = self.collator(examples)
    # A batch without padding comes without a mask.
    size = batch["input_ids"].numel()
    self.useful.append(int(batch["attention_mask"].sum()) if "attention_mask" in batch else size)
    self.padded.append(size)
    return batch


def main() -> None:
  """Times the peer's steps and prints their rate as a line of JSON."""
  parser = worker.parser(__doc__)
  parser.add_argument("--gsm8k", type=Path, required=True, help="train.jsonl of GSM8K")
  parser.add_argument(
    "--layout",
    choices=("padded", "grouped", "padding_free"),
    required=True,
    help="rows as they come, rows of like length together, or all rows of a batch in one",
  )
  args = parser.parse_args()
  steps = args.warmup + args.steps
  # Wrapped here because SFTTrainer would hold the adapters in float32, which is slower.
  model = peft.get_peft_model(
    lora_peft.load_base(args.model), lora_peft.lora(), autocast_adapter_dtype=False
  )
  rows = workloads.gsm8k_rows(args.gsm8k, workloads.gsm8k_count(steps))
  clock = Clock()
  with tempfile.TemporaryDirectory() as scratch:
    config = trl.SFTConfig(
      **lora_peft.trl_settings(scratch, steps),
      per_device_train_batch_size=workloads.SFT_BATCH,
      train_sampling_strategy="group_by_length" if args.layout == "grouped" else "random",
      padding_free=args.layout == "padding_free",
    )
    trainer = trl.SFTTrainer(
      model=model,
      args=config,
      train_dataset=datasets.Dataset.from_list(rows),
      processing_class=AutoTokenizer.from_pretrained(args.model),
      callbacks=[clock],
    )
    collator = CountingCollator(trainer.data_collator)
    trainer.data_collator = collator
    trainer.train()
  seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
  timed = slice(args.warmup, steps)
  useful, padded = collator.useful[timed], collator.padded[timed]
  worker.report(
    ("torch", "transformers", "trl", "peft"),
    tokens_per_second=worker.total_rate(seconds[timed], useful),
    seconds=seconds[timed],
    padding_fraction=1 - sum(useful) / sum(padded),
    trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
  )


if __name__ == "__main__":
  main()
