"""SmolLM2-135M-Instruct learns sums and products from its own attempts (GRPO).

  python -m research.train --config=configs/grpo.py

No solution is shown: of each problem eight answers are drawn, and those whose last number is right
become likelier than the others. The adapter lands in runs/grpo/adapter, in PEFT's format.
"""

from configs import base, quickstart


def get_config():
  config = base.get_config()
  config.directory = "runs/grpo"
  config.model.source = "smollm2-135m-instruct"
  config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 16, "alpha": 32},)

  config.objective = {"name": "policy", "loss": {"name": "clipped", "epsilon_high": 0.28}}
  config.train.rollout = {
    "rewards": ({"name": "scorer", "scorer": "last_number"},),
    "samples": 8,
    "max_new_tokens": 48,
    "unfinished": "zero",
  }

  problems = {"name": "reasoning_gym", "tasks": quickstart.TASKS}
  config.data.train.source = {**problems, "size": 2000}
  config.data.train.length = 192
  config.data.train.buckets = (96, 128, 160)
  config.data.train.packing = "none"
  config.data.train.on_long_row = "drop"
  config.optimizer.learning_rate = 3e-4
  config.optimizer.schedule = {"name": "warmup_cosine", "warmup_fraction": 0.05}
  config.train.steps = 60
  config.train.batch_size = 4

  config.eval.evaluators = (
    {
      "name": "verifiable",
      "label": "arithmetic",
      "data": {**problems, "size": 200, "seed": 1, "split": "test"},
      "max_new_tokens": 64,
    },
  )
  config.checkpoint.every_steps = 10
  config.log.every_steps = 2
  return config
