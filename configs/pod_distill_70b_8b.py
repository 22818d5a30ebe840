"""Llama-3-8B learns from Llama-3-70B, on 512 chips of TPU v5p (8x8x8).

  python -m research.plan --config=configs/pod_distill_70b_8b.py --topology=v5p:8x8x8
  python -m research.train --config=configs/pod_distill_70b_8b.py

PLAN
"""

from configs import base


def get_config():
  config = base.get_config()
  config.directory = "runs/pod_distill_70b_8b"
  config.model.source = "llama-3-8b"
  config.trainable = ("all",)
  config.teacher.source = "llama-3-70b"
  config.objective = {
    "name": "distillation",
    "divergence": {"name": "forward_kl"},
    "share": 0.5,
    "chunk_tokens": 512 * 1024,
  }

  config.data.train.source = {"name": "jsonl", "path": "rows.jsonl"}
  config.data.train.length = 8192
  config.train.batch_size = 512
  config.optimizer.learning_rate = 2e-5
  config.mesh.data = 4
  config.mesh.fsdp = -1
  return config
