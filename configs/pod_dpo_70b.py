"""Llama-3-70B learns which of two answers is better: DPO by LoRA, on 512 chips of v5p (8x8x8).

  python -m research.plan --config=configs/pod_dpo_70b.py --topology=v5p:8x8x8
  python -m research.train --config=configs/pod_dpo_70b.py

The model's files are looked for in $RESEARCH_MODELS/llama-3-70b; a plan needs none. A step is 128
pairs; the reference is the model without its adapters, which costs a forward pass.

The plan (jax 0.10.2, libtpu 0.0.42): 59.1 GiB of 95 on each chip, 3.2 s a step, 331,300 tokens/s,
62.0 % model FLOPs utilisation. Never run on a TPU.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.directory = "runs/pod_dpo_70b"
  config.model.source = "llama-3-70b"
  config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 16, "alpha": 32},)
  config.objective = {
    "name": "preference",
    "loss": {"name": "sigmoid", "beta": 0.1},
    "reference": "base",
    "chunk_tokens": 256 * 1024,
  }

  config.data.train.source = {"name": "jsonl", "path": "pairs.jsonl"}
  config.data.train.length = 4096
  config.data.train.packing = "none"
  config.train.batch_size = 128
  config.optimizer.learning_rate = 5e-6
  config.mesh.data = 2
  config.mesh.fsdp = -1
  config.mesh.tensor = 2
  return config
