"""The quickstart's training on a base whose products are of integers, and on one in bfloat16.

  python -m research.train --config=experiments/int8_training/config.py:VARIANT

VARIANT is bfloat16, forward (W8A8: the forward pass alone) or both (back to the inputs, too). What
is told is the loss on 400 held-out problems, before and after.
"""

from configs import quickstart

_RULE = {"target": "layers/.*_proj/kernel", "kind": "int8", "activations": "int8"}
VARIANTS = {"bfloat16": (), "forward": (_RULE,), "both": ({**_RULE, "gradients": "int8"},)}


def get_config(variant: str):
  """The run of `variant`, a key of `VARIANTS`."""
  config = quickstart.get_config()
  config.directory = f"runs/int8_training/{variant}"
  config.quantize = VARIANTS[variant]
  config.data.eval = config.data.train.copy_and_resolve_references()
  problems = {"name": "reasoning_gym", "tasks": quickstart.TASKS}
  config.data.eval.source = {**problems, "size": 400, "seed": 1, "split": "test"}
  config.eval.evaluators = ()
  return config
