"""Llama-3.1-8B learns by LoRA on rows of 131,072 tokens, on 64 chips of TPU v5p (4x4x4).

  python -m research.plan --config=configs/pod_long_8b.py --topology=v5p:4x4x4
  python -m research.train --config=configs/pod_long_8b.py

The model's files are looked for in $RESEARCH_MODELS/llama-3.1-8b; a plan needs none. Each row lies
on eight chips.

The plan (jax 0.10.2, libtpu 0.0.42): 80.6 GiB of 95 on each chip, 13 s a step of a million tokens,
79,500 tokens/s, 36.1 % model FLOPs utilisation; the bottleneck is splash attention, which plans
count as if it skipped no block. With config.model.remat="attention" it is 18.4 GiB and 34.7 %
(with True 15.3 GiB and 29.5 %), for longer rows or fewer chips. Never run on a TPU.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.directory = "runs/pod_long_8b"
  config.model.source = "llama-3.1-8b"
  config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 16, "alpha": 32},)
  config.objective = {"name": "causal", "chunk_tokens": 64 * 2048}

  config.data.train.source = {"name": "jsonl", "path": "rows.jsonl"}
  config.data.train.length = 131072
  config.train.batch_size = 8
  config.optimizer.learning_rate = 2e-4
  config.mesh.data = 1
  config.mesh.fsdp = 8
  config.mesh.sequence = -1
  return config
