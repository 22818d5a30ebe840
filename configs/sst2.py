"""MiniLM learns the sentiment of sentences by LoRA.

python -m research.train --config=configs/sst2.py
"""

from configs import base


def get_config():
  config = base.get_config()
  config.directory = "runs/sst2"
  config.model.source = "all-minilm-l6-v2"
  config.model.head = {"name": "sequence", "labels": ("negative", "positive")}
  config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 16, "alpha": 32},)
  config.trainable = ("adapters", "pooler/.*")
  config.objective = {"name": "classification"}

  config.data.train.source = {"name": "jsonl", "path": "data/sst2/train.jsonl"}
  config.data.train.length = 128
  config.optimizer.learning_rate = 1e-3
  config.optimizer.weight_decay = 0.01
  config.train.steps = 400
  config.train.batch_size = 8

  config.eval.evaluators = (
    {"name": "classification", "data": {"name": "jsonl", "path": "data/sst2/dev.jsonl"}},
  )
  config.eval.every_steps = 100
  config.log.every_steps = 20
  return config
