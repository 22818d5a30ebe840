"""A student of 15 of SmolLM2-135M-Instruct's 30 layers learns text, told by held-out perplexity.

  python -m research.train --config=experiments/distillation/config.py --config.directory=runs/x

A run of the sweep beside it, by cross-entropy alone; `rows.py` writes its rows first, in the
directory that the config's argument names (`config.py:DIR`). The layers train; the table of tokens,
which is the head, too, stays the teacher's.
"""

from configs import base

DATA = "runs/data/distillation"
TEACHER = "smollm2-135m-instruct"
LENGTH = 256
STEPS = 60


def get_config(data: str = DATA):
  """The run on the rows in the directory `data`."""
  config = base.get_config()
  config.directory = "runs/distillation_alone"
  config.model.source = TEACHER
  config.model.student = {"name": "sliced", "layers": 15}
  config.trainable = ("layers/.*", "final_norm/.*")

  config.data.train.source = {"name": "jsonl", "path": f"{data}/train.jsonl"}
  config.data.train.length = LENGTH
  # A row of each batch is one text, whose prompt is known: the student may have to write on.
  config.data.train.packing = "none"
  config.optimizer.learning_rate = 5e-4
  config.optimizer.schedule = {"name": "warmup_cosine", "warmup_fraction": 0.1}
  config.train.steps = STEPS
  config.train.batch_size = 4

  held_out = {"name": "jsonl", "path": f"{data}/held_out.jsonl"}
  config.eval.evaluators = ({"name": "perplexity", "data": held_out, "length": LENGTH},)
  config.checkpoint.every_steps = 0
  config.checkpoint.keep_last = 1
  config.log.tensorboard = False
  return config
