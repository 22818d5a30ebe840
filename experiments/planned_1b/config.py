"""Llama-3.2-1B on one chip, full or by LoRA: planned, never run.

  python -m research.plan --config=experiments/planned_1b/config.py --topology=v5e:1x1 --compare

The model's files are looked for in $RESEARCH_MODELS/llama-3.2-1b; a plan needs none.
"""

from configs import base


def get_config():
  """LoRA on every projection; `--compare` changes what trains."""
  config = base.get_config()
  config.directory = "runs/planned_1b"
  config.model.source = "llama-3.2-1b"
  config.model.remat = "products"
  config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 16, "alpha": 32},)
  config.objective = {"name": "causal", "chunk_tokens": 1024}

  config.data.train.source = {"name": "jsonl", "path": "rows.jsonl"}
  config.data.train.length = 1024
  config.train.batch_size = 4
  config.optimizer.learning_rate = 2e-4
  return config
