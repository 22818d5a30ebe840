"""The training that the benchmarks measure: LoRA at all seven projections of SmolLM2-135M.

The model's and the data's paths are left to fill in (`get_config`'s source, or
`config.model.source`, and `config.data.train.source.path`); `benchmarks.startup` gives them to
`research.train`.
"""

from ml_collections import ConfigDict

from benchmarks import workloads
from configs import base


def get_config(source: str = "") -> ConfigDict:
  """The training of the benchmarks. source: of the model."""
  config = base.get_config()
  config.model.source = source
  # Straight-line code for all 30 layers, and activations kept: the fastest on a CPU.
  config.model.unroll = 30
  config.model.remat = False
  rule = {
    "target": f"layers/.*/({'|'.join(workloads.LORA_MODULES)})/kernel",
    "name": "lora",
    "rank": workloads.LORA_RANK,
    "alpha": workloads.LORA_ALPHA,
  }
  config.adapters = (rule,)
  config.data.train.source = ConfigDict({"name": "jsonl", "path": ""})
  config.data.train.length = workloads.STEP_TOKENS
  config.train.batch_size = workloads.STEP_BATCH
  config.optimizer.learning_rate = workloads.LEARNING_RATE
  config.optimizer.clip_norm = workloads.MAX_GRADIENT_NORM
  return config
