"""SmolLM2-135M-Instruct learns mental arithmetic by LoRA: minutes on two CPU cores.

  python -m research.train --config=configs/quickstart.py

Held-out problems are scored by the last number of the answer, before and after, so that
learning the answer's format alone gains nothing. The adapter lands in runs/quickstart/adapter,
in PEFT's format.

On a 2-core CPU with AMX: 7 min 4 s; 15.0 % -> 43.0 % of 200 held-out problems, +28 points (95 %
paired bootstrap interval 21 to 35), seed 0. The base model is cut off on 11.5 % of the problems;
had it been right on all of those, the gain would still be 16 points. No held-out expression is
trained on; for 46 of the 57 held-out products, the same factors in another order are.
"""

from configs import base

TASKS = (
  {
    "name": "chain_sum",
    "weight": 3.0,
    "config": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
  },
  {
    "name": "products",
    "weight": 1.0,
    "config": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
  },
)


def get_config():
  config = base.get_config()
  config.directory = "runs/quickstart"
  config.model.source = "smollm2-135m-instruct"
  config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 16, "alpha": 32},)

  problems = {"name": "reasoning_gym", "tasks": TASKS}
  config.data.train.source = {**problems, "size": 2000}
  config.data.train.length = 256
  config.optimizer.learning_rate = 1e-3
  config.train.steps = 100
  config.train.batch_size = 4

  config.eval.evaluators = (
    {
      "name": "verifiable",
      "label": "arithmetic",
      "data": {**problems, "size": 200, "seed": 1, "split": "test"},
      "max_new_tokens": 64,
    },
  )
  config.checkpoint.every_steps = 25
  config.log.every_steps = 5
  return config
