"""Llama-3.1-8B learns by LoRA on rows of 131,072 tokens, on 64 chips of TPU v5p (4x4x4).

  python -m research.plan --config=configs/pod_long_8b.py --topology=v5p:4x4x4
  python -m research.train --config=configs/pod_long_8b.py

The model's files are looked for in $RESEARCH_MODELS/llama-3.1-8b; a plan needs none. Each row lies
on four chips, and each layer is computed again in the backward pass.

The plan (jax 0.10.2, libtpu 0.0.42): 26.0 GiB of 95 on each chip, 32 s a step of two million
tokens, 65,100 tokens/s, 29.5 % model FLOPs utilisation; the bottleneck is recomputation, and splash
attention, which plans count as if it skipped nothing. Never run on a TPU.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.directory = "runs/pod_long_8b"
  config.model.source = "llama-3.1-8b"
  config.model.remat = True
  config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 16, "alpha": 32},)
  config.objective = {"name": "causal", "chunk_tokens": 64 * 2048}

  config.data.train.source = {"name": "jsonl", "path": "rows.jsonl"}
  config.data.train.length = 131072
  config.train.batch_size = 16
  config.optimizer.learning_rate = 2e-4
  config.mesh.data = 1
  config.mesh.fsdp = 16
  config.mesh.sequence = -1
  return config
