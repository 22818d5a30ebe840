"""Llama-3-8B learns from Llama-3-70B, on 512 chips of TPU v5p (8x8x8).

  python -m research.plan --config=configs/pod_distill_70b_8b.py --topology=v5p:8x8x8
  python -m research.train --config=configs/pod_distill_70b_8b.py

The models' files are looked for in $RESEARCH_MODELS/llama-3-8b and llama-3-70b; a plan needs none.
Forward KL and cross-entropy, half and half, with the teacher beside the student.

The plan (jax 0.10.2, libtpu 0.0.42): 50.6 GiB of 95 on each chip, 5.1 s a step of four million
tokens, 825,800 tokens/s, 70.7 % model FLOPs utilisation. Never run on a TPU.
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
