"""Preference optimization of TRL: DPOTrainer, LoRA, bfloat16 weights, no checkpointing.

The same tokenized pairs again and again; every token of a row counts, the prompt's too.
"""

from __future__ import annotations

import tempfile
from typing import Any

import datasets
import torch
import trl
from transformers import AutoTokenizer

from benchmarks import worker, workloads
from benchmarks.peers import lora_peft
from benchmarks.peers.sft_trl import Clock


def main() -> None:
  """Trains for the given steps and prints the figures as a line of JSON."""
  parser = worker.parser(__doc__)
  parser.add_argument("--kept", action="store_true", help="with precomputed log-probabilities")
  args = parser.parse_args()
  steps = args.warmup + args.steps
  clock = Clock()
  with tempfile.TemporaryDirectory() as scratch:
    config = trl.DPOConfig(
      **lora_peft.trl_settings(scratch, steps),
      per_device_train_batch_size=workloads.PAIRS,
      beta=workloads.BETA,
      precompute_ref_log_probs=args.kept,
    )
    trainer = trl.DPOTrainer(
      model=lora_peft.load_base(args.model),
      args=config,
      # Read, and then replaced by what is tokenized.
      train_dataset=datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
      processing_class=AutoTokenizer.from_pretrained(args.model),
      # Not a PeftModel, which would get a second adapter for the reference.
      peft_config=lora_peft.lora(),
      callbacks=[clock],
    )
    for parameter in trainer.model.parameters():
      if parameter.requires_grad:  # which PEFT holds in float32: slower
        parameter.data = parameter.data.to(torch.bfloat16)
    trainer.train_dataset = datasets.Dataset.from_list(_rows(args.kept) * steps)
    trainer.train()
  seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
  seconds = seconds[args.warmup : steps]
  worker.report(
    ("torch", "transformers", "trl", "peft"),
    tokens_per_second=worker.median_rate(seconds, 2 * workloads.PAIRS * workloads.STEP_TOKENS),
    seconds=seconds,
    trainable=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
  )


def _rows(kept: bool) -> list[dict[str, Any]]:
  """The pairs as the trainer's data set has them."""
  tokens, rows = workloads.pairs(), []
  for chosen, rejected in zip(tokens[::2].tolist(), tokens[1::2].tolist(), strict=True):
    at = workloads.PAIR_PROMPT_TOKENS
    row = {"prompt_ids": chosen[:at], "chosen_ids": chosen[at:], "rejected_ids": rejected[at:]}
    rows.append(row | ({"ref_chosen_logps": -1.0, "ref_rejected_logps": -1.0} if kept else {}))
  return rows


if __name__ == "__main__":
  main()
