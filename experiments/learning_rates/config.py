"""SmolLM2-135M-Instruct learns the quickstart's sums by LoRA, told by the loss of held-out answers.

A run of the sweep beside it; `--config.optimizer.learning_rate` and `.schedule` are what it varies.
"""

from configs import quickstart


def get_config():
  """The quickstart, shorter, by LoRA of rank 8, with a held-out loss."""
  config = quickstart.get_config().unlock()
  config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 8, "alpha": 16},)
  config.data.train.length = 128
  config.data.eval = config.data.train.copy_and_resolve_references()
  config.data.eval.source = {**config.data.train.source, "size": 100, "seed": 1, "split": "test"}
  config.train.steps = 40
  config.eval.evaluators = ()
  config.checkpoint.every_steps = 0
  config.log.tensorboard = False
  return config.lock()
