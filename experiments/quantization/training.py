"""SmolLM2's projections learn on their grid of 3 bits from the model as it was.

  python -m research.train --config=experiments/quantization/training.py

The student is the teacher, rounded to nearest in every step; it learns the teacher's distribution
of the calibration texts' tokens (`texts.py` writes them), and no other text. The table, which is
the head, too, stays as it is.
"""

from configs import base
from experiments.quantization.config import MODEL, VARIANTS

TEXTS = ("speeches", "europarl", "gsm8k", "t0")


def get_config():
  """The run that the variant "int3 g64 trained" is of."""
  config = base.get_config()
  config.directory = "runs/quantization/int3_training"
  config.model.source = MODEL
  config.quantize = VARIANTS["int3 g64 nearest"].rules
  config.trainable = ("layers/.*", "final_norm/.*")
  config.teacher.source = MODEL
  config.objective = {
    "name": "distillation",
    "divergence": {"name": "forward_kl"},
    "share": 1.0,
  }
  texts = [{"name": "text", "path": f"runs/data/calibration/{text}.txt"} for text in TEXTS]
  config.data.train.source = {"name": "mixture", "sources": texts}
  config.data.train.on_long_row = "split"
  config.data.train.length = 512
  config.optimizer.learning_rate = 2e-4
  config.train.steps = 180
  config.train.batch_size = 4
  config.checkpoint.every_steps = 60
  config.checkpoint.keep_last = 1
  config.log.tensorboard = False
  return config
