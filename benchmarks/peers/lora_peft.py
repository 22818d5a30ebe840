"""What peers of transformers and PEFT train: the base in bfloat16, LoRA at all of its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

from benchmarks import workloads


def load_base(directory: Path) -> Any:
  """The model of a Hugging Face directory; torch's random numbers begin at seed 0."""
  torch.manual_seed(0)
  return AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.bfloat16, attn_implementation="sdpa"
  )


def lora(**settings: Any) -> peft.LoraConfig:
  """The adapter of all workloads; settings: more of PEFT's."""
  return peft.LoraConfig(
    r=workloads.LORA_RANK,
    lora_alpha=workloads.LORA_ALPHA,
    target_modules=list(workloads.LORA_MODULES),
    task_type="CAUSAL_LM",
    **settings,
  )


def trl_settings(directory: str, steps: int) -> dict[str, Any]:
  """What the configs of all of TRL's trainers are told: no checkpointing, nothing but steps."""
  return {
    "output_dir": directory,
    "max_steps": steps,
    "learning_rate": workloads.LEARNING_RATE,
    "max_grad_norm": workloads.MAX_GRADIENT_NORM,
    "max_length": None,  # no row is long; padding_free takes no limit
    "optim": "adamw_torch_fused",
    "bf16": False,  # the weights are bfloat16 already: autocast would only add casts
    "gradient_checkpointing": False,
    "use_cpu": True,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
  }
