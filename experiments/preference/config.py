"""SmolLM2-135M-Instruct learns by LoRA which of its own answers are right: DPO.

  python -m research.train --config=experiments/preference/config.py

A run of the sweep beside it; `pairs.py` writes its rows first, in the directory that the config's
argument names (`config.py:DIR`). Held-out problems are answered and verified, and on held-out pairs
it is told what answers have gained and how far the model is from the one that it began as.
"""

from configs import base
from configs.quickstart import TASKS

DATA = "runs/data/preference"
MODEL = "smollm2-135m-instruct"
NEW_TOKENS = 64  # of an answer
LENGTH = 256  # of a row, which public pairs need


def get_config(data: str = DATA):
  """The run on the pairs in the directory `data`."""
  config = base.get_config()
  config.directory = "runs/preference_alone"
  config.model.source = MODEL
  config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 16, "alpha": 32},)
  config.objective = {
    "name": "preference",
    "loss": {"name": "sigmoid", "beta": 0.1},
    "reference": "base",
  }

  config.data.train.source = {"name": "jsonl", "path": f"{data}/train.jsonl"}
  config.data.train.length = LENGTH
  config.data.train.packing = "none"
  config.data.train.buckets = (128,)
  config.optimizer.learning_rate = 2e-4
  config.optimizer.schedule = {"name": "warmup_cosine", "warmup_fraction": 0.1}
  config.train.steps = 60
  config.train.batch_size = 4

  problems = {"name": "reasoning_gym", "tasks": TASKS, "size": 100, "seed": 1, "split": "test"}
  config.eval.evaluators = (
    {
      "name": "verifiable",
      "label": "arithmetic",
      "data": problems,
      "max_new_tokens": NEW_TOKENS,
      "batch_size": 50,
    },
    {"name": "reference_kl", "label": "pairs", "data": held_out(data), "length": LENGTH},
  )
  config.checkpoint.every_steps = 0
  config.checkpoint.keep_last = 1
  config.log.tensorboard = False
  return config


def held_out(data: str):
  """The source of the pairs that are not trained on."""
  return {"name": "jsonl", "path": f"{data}/held_out.jsonl"}
