"""Llama-3-8B learns by LoRA on every projection, on 16 chips of TPU v5e (4x4).

  python -m research.plan --config=configs/pod_lora_8b.py --topology=v5e:4x4
  python -m research.train --config=configs/pod_lora_8b.py

The model's files are looked for in $RESEARCH_MODELS/llama-3-8b; a plan needs none.

The plan (jax 0.10.2, libtpu 0.0.42): 9.6 GiB of 16 on each chip, 0.65 s a step, 50,800 tokens/s,
51.4 % model FLOPs utilisation. What lies between products is computed again: keeping it is slower
(12.9 GiB, 50.8 %). Rows of 4,096 fit as well (15.5 GiB, 47.7 %). Never run on a TPU.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.directory = "runs/pod_lora_8b"
  config.model.source = "llama-3-8b"
  config.model.remat = "products"
  config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 16, "alpha": 32},)
  # Tokens of all devices: 1,024 logits of each at a time.
  config.objective = {"name": "causal", "chunk_tokens": 16 * 1024}

  config.data.train.source = {"name": "jsonl", "path": "rows.jsonl"}
  config.data.train.length = 2048
  config.train.batch_size = 16
  config.optimizer.learning_rate = 2e-4
  config.mesh.data = 1
  config.mesh.fsdp = -1
  return config
