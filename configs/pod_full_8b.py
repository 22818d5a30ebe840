"""All of Llama-3-8B learns, on 64 chips of TPU v5p (4x4x4).

  python -m research.plan --config=configs/pod_full_8b.py --topology=v5p:4x4x4
  python -m research.train --config=configs/pod_full_8b.py

The model's files are looked for in $RESEARCH_MODELS/llama-3-8b; a plan needs none.

The plan (jax 0.10.2, libtpu 0.0.42): 88.5 GiB of 95 on each chip, 3.2 s a step of a million tokens,
328,700 tokens/s, 57.6 % model FLOPs utilisation. Nothing is computed again, which is fastest; of
config.model.remat "products" is 62.5 GiB and 57.0 %, "attention" 24.5 GiB and 52.4 %, and True
20.6 GiB and 50.6 %. Never run on a TPU.

Parameters are split over 16 chips, and not over 64: what is split over all chips of a torus of
three dimensions the compiler brings together by all-reduces, which send twice what all-gathers do
(by the plan of fsdp=64 80.7 GiB, 166 GB sent in place of 128, 55.9 %).
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
  config.mesh.data = 4
  config.mesh.fsdp = -1
  return config
