"""SmolLM2's projections learn in few bits from the model as it was.

  python -m research.train --config=experiments/quantization/training.py:int3_training
  python -m research.train --config=experiments/quantization/training.py:int4_scales
  python -m research.train --config=experiments/quantization/training.py:nf4_scales

The student learns the teacher's distribution of the calibration texts' tokens (`texts.py` writes
them), and no other text. The table, which is the head, too, stays as it is. In the first run the
student is the teacher, rounded to the nearest of 3 bits in every step; in the others it is what
`rounded.py` wrote, of which the scales alone train.
"""

from configs import base
from experiments.quantization.config import MODEL, RUNS, VARIANTS

ROUNDED = {kind: f"{RUNS}/{kind}_gptq" for kind in ("int4", "nf4")}
TEXTS = ("speeches", "europarl", "gsm8k", "t0")
SOURCE = {
  "name": "mixture",
  "sources": [{"name": "text", "path": f"runs/data/calibration/{text}.txt"} for text in TEXTS],
}


def get_config(name: str):
  """The run of that name, which a variant is of."""
  config = base.get_config()
  config.directory = f"{RUNS}/{name}"
  config.teacher.source = MODEL
  config.objective = {"name": "distillation", "divergence": {"name": "forward_kl"}, "share": 1.0}
  config.data.train.source = SOURCE
  config.data.train.on_long_row = "split"
  config.data.train.length = 512
  config.train.batch_size = 4
  config.checkpoint.every_steps = 60
  config.checkpoint.keep_last = 1
  config.log.tensorboard = False
  if name == "int3_training":
    config.model.source = MODEL
    config.quantize = VARIANTS["int3 g64 nearest"].rules
    config.trainable = ("layers/.*", "final_norm/.*")
    config.optimizer.learning_rate = 2e-4
    config.train.steps = 180
  elif name in ("int4_scales", "nf4_scales"):
    config.model.source = ROUNDED[name.removesuffix("_scales")]
    config.trainable = ("layers/.*/kernel/scale",)
    config.optimizer.learning_rate = {"int4_scales": 5e-5, "nf4_scales": 1e-4}[name]
    config.train.steps = 180
  else:
    raise ValueError(
      f"there is no run {name!r}; there are int3_training, int4_scales and nf4_scales"
    )
  return config
