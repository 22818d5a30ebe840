"""A student of 15 of SmolLM2-135M-Instruct's 30 layers learns arithmetic from its teacher.

  python -m research.train --config=configs/distill.py

In two stages: the first, `teacher`, trains all 30 layers on the problems, and in the second,
`student`, every other layer of the result learns from it, by the forward KL at a temperature that
falls from 4 to 1, half and half with the cross-entropy. The student is a Hugging Face directory,
runs/distill/stages/student/model.

Not yet run to its end. A trial of 3 and 8 steps on 2 busy CPU cores (13 and 11 s a step, compiling
84 and 56 s) took the held-out cross-entropy of 40 problems from 3.40 to 1.45 in the teacher, and
from 12.34 to 1.84 in the student, whose divergence from its teacher went from 10.1 to 0.72.
"""

from configs import base
from configs.quickstart import TASKS


def get_config():
  config = base.get_config()
  config.directory = "runs/distill"
  config.model.source = "smollm2-135m-instruct"
  config.trainable = ("all",)

  problems = {"name": "reasoning_gym", "tasks": TASKS}
  config.data.train.source = {**problems, "size": 2000}
  config.data.train.length = 256
  config.data.eval = config.data.train.copy_and_resolve_references()
  config.data.eval.source = {**problems, "size": 200, "seed": 1, "split": "test"}
  config.optimizer.learning_rate = 1e-4
  config.train.steps = 50
  config.train.batch_size = 4
  config.checkpoint.every_steps = 25
  config.log.every_steps = 5

  config.stages = (
    {"name": "teacher"},
    {
      "name": "student",
      "model.student": {"name": "sliced", "layers": 15},
      "teacher.source": "stages/teacher",
      "objective": {
        "name": "distillation",
        "divergence": {"name": "forward_kl"},
        "temperature": {"name": "cosine", "start": 4.0},
        "share": 0.5,
      },
      "train.steps": 200,
      "optimizer.learning_rate": 5e-4,
    },
  )
  return config
