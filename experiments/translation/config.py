"""A T5 of 6.5 million parameters, from random weights, German to English.

  python -m experiments.translation --source=europarl.de --target=europarl.en

prepares rows and vocabulary, and runs this file; `README.md` beside it has the result.
"""

from configs import base

DIRECTORY = "runs/translation"
T5 = {
  "model_type": "t5",
  "d_model": 256,
  "d_kv": 64,
  "d_ff": 1024,
  "num_layers": 3,
  "num_heads": 4,
  "feed_forward_proj": "relu",
}


def get_config(directory: str = DIRECTORY):
  """The run in `directory`, which holds the rows and the tokenizer."""
  config = base.get_config()
  config.directory = f"{directory}/run"
  config.model.shape = T5
  config.model.tokenizer = f"{directory}/tokenizer"
  config.trainable = ("all",)
  config.objective = {"name": "seq2seq"}

  held_out = {"name": "jsonl", "path": f"{directory}/held_out.jsonl"}
  config.data.train.source = {"name": "jsonl", "path": f"{directory}/train.jsonl"}
  config.data.train.length = 128
  config.data.train.target_length = 128
  config.data.train.on_long_row = "drop"
  config.data.eval = config.data.train.copy_and_resolve_references()
  config.data.eval.source = held_out

  config.optimizer.learning_rate = 1e-3
  config.optimizer.b2 = 0.98
  config.optimizer.schedule = {"name": "warmup_cosine", "warmup_fraction": 0.1}
  config.train.steps = 1500
  config.train.batch_size = 8

  config.eval.every_steps = 250
  config.eval.evaluators = (
    {"name": "bleu", "data": held_out, "max_new_tokens": 48, "batch_size": 64},
  )
  config.checkpoint.every_steps = 100
  config.log.every_steps = 20
  return config
