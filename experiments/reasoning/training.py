"""SmolLM2-135M-Instruct learns by LoRA to write its own right chains without exemplars.

  python -m research.train --config=experiments/reasoning/training.py

One round of rejection sampling; README.md has the commands that write its rows.
"""

from configs import base
from experiments.reasoning.config import MODEL, evaluator

ROWS = "runs/data/reasoning/right.jsonl"


def get_config():
  """The run on the rows in `ROWS`, measured plain on the held-out problems, before and after."""
  config = base.get_config()
  config.directory = "runs/reasoning_learnt"
  config.model.source = MODEL
  config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 16, "alpha": 32},)
  config.data.train.source = {"name": "jsonl", "path": ROWS}
  config.data.train.length = 256
  config.optimizer.learning_rate = 1e-3
  config.train.steps = 100
  config.train.batch_size = 4
  config.eval.evaluators = (evaluator("plain"),)
  return config
