"""Llama-3-8B, held in 4 bits, learns by LoRA on every projection, on 16 chips of TPU v5e (4x4).

  python -m research.plan --config=configs/pod_qlora_8b.py --topology=v5e:4x4
  python -m research.train --config=configs/pod_qlora_8b.py

The model's files are looked for in $RESEARCH_MODELS/llama-3-8b; a plan needs none.

The plan (jax 0.10.2, libtpu 0.0.42): 12.3 GiB of 16 on each chip, 0.69 s a step, 47,800 tokens/s,
48.3 % model FLOPs utilisation; the bottleneck is memory's bandwidth. On 16 chips the base is small
by itself: activations have most of the memory. With config.model.remat="products" it is 9.1 GiB and
47.0 %. Never run on a TPU.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.directory = "runs/pod_qlora_8b"
  config.model.source = "llama-3-8b"
  config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 16, "alpha": 32},)
  config.quantize = (
    {"target": "layers/.*_proj/kernel", "kind": "nf4", "group": 64, "scales": "double"},
  )
  config.objective = {"name": "causal", "chunk_tokens": 16 * 1024}

  config.data.train.source = {"name": "jsonl", "path": "rows.jsonl"}
  config.data.train.length = 2048
  config.train.batch_size = 16
  config.optimizer.learning_rate = 2e-4
  config.mesh.data = 1
  config.mesh.fsdp = -1
  return config
