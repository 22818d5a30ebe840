"""The training that the benchmarks measure: LoRA at all seven projections of SmolLM2-135M.

The model's and the data's paths are left to fill in (`get_config`'s source, or
`config.model.source`, and `config.data.train.source.path`); `benchmarks.startup` gives them to
`research.train`.
"""

from ml_collections import ConfigDict

from benchmarks import workloads
from configs import base

_TARGET = f"layers/.*/({'|'.join(workloads.LORA_MODULES)})/kernel"
_LORA = {"target": _TARGET, "rank": workloads.LORA_RANK, "alpha": workloads.LORA_ALPHA}
# Rules of adapters by what a step is compared with LoRA's for, and what trains.
METHODS = {
  "lora": ({"name": "lora", **_LORA},),
  "dora": ({"name": "dora", **_LORA},),
  "ia3": ({"name": "ia3", "target": r"layers/(attention/[kv]|mlp/down)_proj/kernel"},),
  "norms": (),  # gains of norms: the model has no biases
  "prompt": ({"name": "prompt", "tokens": workloads.VIRTUAL_TOKENS},),
  "prefix": ({"name": "prefix", "tokens": workloads.VIRTUAL_TOKENS},),
  # Forward and back to the inputs through a model in which nothing trains.
  "bare": ({"name": "prompt", "tokens": 1},),
  # LoRA on a base whose products are of integers: forward, and back to the inputs, too.
  "int8_forward": ({"name": "lora", **_LORA},),
  "int8": ({"name": "lora", **_LORA},),
}
_INT8 = {"target": _TARGET, "kind": "int8", "activations": "int8"}
QUANTIZED = {
  "int8_forward": (_INT8,),
  "int8_outliers": (
    {**_INT8, "target": r"layers/attention/[qkv]_proj/kernel", "outliers": 8},
    _INT8,
  ),
  "int8": ({**_INT8, "gradients": "int8"},),
}
# Where the teacher of a distillation is.
TEACHERS = ("beside", "kept", "apart", "none")


def get_config(source: str = "", method: str = "lora") -> ConfigDict:
  """The training of the benchmarks. source: of the model. method: a key of `METHODS`."""
  config = base.get_config()
  config.model.source = source
  # Straight-line code for all 30 layers, and activations kept: the fastest on a CPU.
  config.model.unroll = 30
  config.model.remat = False
  config.adapters = METHODS[method]
  config.quantize = QUANTIZED.get(method, ())
  config.trainable = (".*norm/scale",) if method == "norms" else ("adapters",)
  config.data.train.source = ConfigDict({"name": "jsonl", "path": ""})
  config.data.train.length = workloads.STEP_TOKENS
  config.train.batch_size = workloads.STEP_BATCH
  config.optimizer.learning_rate = workloads.LEARNING_RATE
  config.optimizer.clip_norm = workloads.MAX_GRADIENT_NORM
  return config


def get_student(source: str, teacher: str) -> ConfigDict:
  """The distillation of the benchmarks. source: of the model. teacher: one of `TEACHERS`."""
  config = get_config(source)
  config.model.unroll = 0  # all layers of the student, and all of its teacher's
  config.model.student = {"name": "sliced", "layers": workloads.STUDENT_LAYERS}
  config.adapters = ()
  config.trainable = ("layers/.*", "final_norm/.*")
  if teacher in ("beside", "kept"):
    config.objective = {"name": "distillation"}
    config.teacher.source = source
    config.teacher.keep_tokens = workloads.KEPT_TOKENS if teacher == "kept" else 0
  return config
