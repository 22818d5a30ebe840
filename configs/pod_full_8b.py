"""All of Llama-3-8B learns, on 64 chips of TPU v5p (4x4x4).

  python -m research.plan --config=configs/pod_full_8b.py --topology=v5p:4x4x4
  python -m research.train --config=configs/pod_full_8b.py

The model's files are looked for in $RESEARCH_MODELS/llama-3-8b; a plan needs none.

The plan (jax 0.10.2, libtpu 0.0.42): 80.7 GiB of 95 on each chip, 3.3 s a step of a million tokens,
319,200 tokens/s, 55.9 % model FLOPs utilisation. Never run on a TPU.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.directory = "runs/pod_full_8b"
  config.model.source = "llama-3-8b"
  config.trainable = ("all",)
  config.objective = {"name": "causal", "chunk_tokens": 64 * 2048}

  config.data.train.source = {"name": "jsonl", "path": "rows.jsonl"}
  config.data.train.length = 8192
  config.train.batch_size = 128
  config.optimizer.learning_rate = 1e-5
  config.mesh.data = 1
  config.mesh.fsdp = -1
  return config
