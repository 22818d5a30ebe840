"""SmolLM2-135M-Instruct learns which of two answers is preferred: DPO by LoRA, on your pairs.

  python -m research.train --config=configs/dpo.py --config.data.train.source.path=pairs.jsonl

A row of the JSONL file is a prompt with a chosen and a rejected answer, strings or messages:

  {"prompt": [{"role": "user", "content": "What is 2 + 2?"}],
   "chosen": [{"role": "assistant", "content": "4."}],
   "rejected": [{"role": "assistant", "content": "It is 5."}]}

or `chosen` and `rejected` as whole conversations, without `prompt`. `batch_size` counts pairs. The
reference is the model without its adapter; what the answers' log-probabilities and rewards do is in
runs/dpo/metrics.jsonl, named as TRL names them. The adapter lands in runs/dpo/adapter, in PEFT's
format. The changes for something else:

  precomputed references         config.objective.reference = "kept"
  without a reference            config.objective.loss = {"name": "simpo"}, no `reference`
  answers judged alone           config.objective = {"name": "kto"}, and rows with a `label`
  held-out pairs                 config.data.eval = config.data.train with another path

Cost: not measured yet; a step is a forward and a backward pass of LoRA over both answers of each
pair, and a forward pass of the base.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.directory = "runs/dpo"
  config.model.source = "smollm2-135m-instruct"
  config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 16, "alpha": 32},)
  config.objective = {
    "name": "preference",
    "loss": {"name": "sigmoid", "beta": 0.1},
    "reference": "base",
  }

  config.data.train.source = {"name": "jsonl", "path": "pairs.jsonl"}
  config.data.train.length = 512
  config.data.train.packing = "none"
  config.data.train.buckets = (128, 256)
  config.optimizer.learning_rate = 5e-5
  config.train.steps = 200
  config.train.batch_size = 4
  config.checkpoint.every_steps = 50
  config.log.every_steps = 5
  return config
