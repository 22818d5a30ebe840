"""KTO on a batch of ours against TRL's KTOTrainer, mismatched answers and all."""

import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import datasets
import jax
import numpy as np
import torch
import transformers
import trl

from research import models, objectives
from research.core.config import Config
from research.data import pipeline

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 64,
}
ROWS = [
  {"prompt": "2 + 2 =", "completion": " 4", "label": True},
  {"prompt": "a longer prompt", "completion": " and a longer answer", "label": True},
  {"prompt": "x", "completion": "yet", "label": False},
  {"prompt": "what?", "completion": " that and this", "label": True},
]
SETTINGS = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}


def test_a_step(tmp_path, byte_tokenizer):
  model = models.build(LLAMA, unroll=1)
  policy, reference = (
    jax.tree.map(lambda leaf: leaf * 4, models.initialize(model, jax.random.key(seed)))
    for seed in (1, 0)
  )
  theirs = []
  for name, params in (("policy", policy), ("reference", reference)):
    models.save(tmp_path / name, model, params, byte_tokenizer)
    theirs.append(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name))
  datasets.Dataset.from_list(ROWS).to_json(tmp_path / "rows.jsonl")
  section = {
    "source": {"name": "jsonl", "path": str(tmp_path / "rows.jsonl"), "cache": str(tmp_path)},
    "length": 40,
    "target_length": 0,
    "packing": "none",
    "buckets": (),
    "completion_only": True,
    "corruption": {},
    "on_bad_row": "stop",
    "on_long_row": "stop",
    "shuffle": False,
    "window": 16,
  }
  (batch,) = pipeline.eval_batches(
    Config(section), byte_tokenizer, batch_size=len(ROWS), answers="judged"
  )
  trainer = trl.KTOTrainer(
    model=theirs[0],
    ref_model=theirs[1],
    args=trl.KTOConfig(
      output_dir=str(tmp_path / "trl"),
      per_device_train_batch_size=len(ROWS),
      max_length=None,
      gradient_checkpointing=False,
      bf16=False,
      use_cpu=True,
      report_to="none",
      **SETTINGS,
    ),
    # In the order of our batch, by which answers are mismatched.
    train_dataset=datasets.Dataset.from_list([ROWS[row] for row in batch["row"][::2]]),
    processing_class=transformers.AutoTokenizer.from_pretrained(tmp_path / "policy"),
  )
  inputs = trainer.data_collator(list(trainer.train_dataset))
  loss = trainer.compute_loss(trainer.model.train(), inputs)
  loss.backward()
  squares = [p.grad.square().sum() for p in trainer.model.parameters()]
  wanted = {key: values[-1] for key, values in trainer._metrics["train"].items()}

  ours = objectives.build({"name": "kto", "reference": "copy", **SETTINGS})

  @jax.jit
  def step(params):
    def mean(params):
      frozen = {"params": reference, "adapters": {}}
      variables = {"params": params, "adapters": {}, "reference": frozen}
      total, weight, metrics = ours(model, variables, batch, None, 0)
      return total / weight, metrics

    (value, metrics), gradients = jax.value_and_grad(mean, has_aux=True)(params)
    return value, metrics, sum((g**2).sum() for g in jax.tree.leaves(gradients))

  value, metrics, square = step(policy)
  np.testing.assert_allclose(value, loss.item(), rtol=1e-3)
  np.testing.assert_allclose(square**0.5, torch.stack(squares).sum().sqrt(), rtol=1e-3)
  assert wanted["kl"] > 0  # or the mismatched answers would tell nothing
  names = ("kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
  for key in names:
    total, weight = metrics[key]
    np.testing.assert_allclose(total / weight, wanted[key], rtol=1e-3, err_msg=key)
