"""A whole step of preferences against TRL's DPOTrainer, on the rows and the model of both."""

import os
from functools import partial
from types import SimpleNamespace

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
import trl
from trl.experimental.orpo.orpo_trainer import ORPOTrainer

from research import models, objectives, peft
from research.core.config import Config, ConfigError
from research.data import pipeline
from research.loop import state as state_lib
from research.loop import step as step_lib
from research.objectives import answers

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
  {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " five, I think"},
  {"prompt": "a longer prompt", "chosen": " and a longer answer", "rejected": " no"},
  {"prompt": "x", "chosen": "yes.", "rejected": "yet"},
  {"prompt": "what?", "chosen": " that", "rejected": " this"},
]
WHOLE = [
  {"chosen": "The sky is blue", "rejected": "The sky is black"},
  {"chosen": "a b", "rejected": "a b c"},
]
CHATS = [
  {
    "prompt": [{"role": "user", "content": row["prompt"]}],
    "chosen": [{"role": "assistant", "content": row["chosen"]}],
    "rejected": [{"role": "assistant", "content": row["rejected"]}],
  }
  for row in ROWS
]
LOSSES = {
  "sigmoid": ({"name": "sigmoid", "beta": 0.2}, None),
  "ipo, desensitized": ({"name": "ipo", "beta": 0.2}, 0.4),
  "with sft": (
    {
      "name": "mixture",
      "parts": ({"name": "sigmoid", "beta": 0.2}, {"name": "sft", "weight": 0.5}),
    },
    None,
  ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory, byte_tokenizer):
  """Ours: model, policy, reference; TRL's trainer of the same."""
  root = tmp_path_factory.mktemp("preference")
  model = models.build(LLAMA, unroll=1)

  def random(seed):
    params = models.initialize(model, jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf * 4, params)

  policy, reference = random(0), random(1)
  theirs = []
  for name, params in (("policy", policy), ("reference", reference)):
    models.save(root / name, model, params, byte_tokenizer)
    theirs.append(transformers.AutoModelForCausalLM.from_pretrained(root / name))
  trainer = trl.DPOTrainer(
    model=theirs[0],
    ref_model=theirs[1],
    args=trl.DPOConfig(
      output_dir=str(root / "trl"),
      per_device_train_batch_size=len(ROWS),
      beta=0.2,
      max_length=None,
      gradient_checkpointing=False,
      bf16=False,
      use_cpu=True,
      report_to="none",
    ),
    train_dataset=datasets.Dataset.from_list(ROWS),
    processing_class=transformers.AutoTokenizer.from_pretrained(root / "policy"),
  )
  return model, policy, reference, trainer


def _batch(tmp_path, rows, tokenizer):
  source = tmp_path / "rows.jsonl"
  datasets.Dataset.from_list(rows).to_json(source)
  section = {
    "source": {"name": "jsonl", "path": str(source), "cache": str(tmp_path / "cache")},
    "length": 64,
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
  batches = pipeline.eval_batches(Config(section), tokenizer, batch_size=len(rows), answers="pairs")
  (batch,) = batches
  return batch


@pytest.mark.parametrize("rows", [ROWS, WHOLE, CHATS], ids=["strings", "whole texts", "chats"])
def test_tokens_and_prompts(tmp_path, world, byte_tokenizer, rows):
  *_, trainer = world
  theirs = trainer._prepare_dataset(
    datasets.Dataset.from_list(rows), trainer.processing_class, trainer.args, "test"
  )
  batch = _batch(tmp_path, rows, byte_tokenizer)
  for r, number in enumerate(batch["row"]):
    row = theirs[int(number)]
    answer = row["rejected_ids"] if r % 2 else row["chosen_ids"]
    size = int((batch["segments"][r] > 0).sum())
    assert batch["tokens"][r][:size].tolist() == row["prompt_ids"] + answer
    assert batch["weights"][r].sum() == len(answer)
    assert np.argmax(batch["weights"][r]) == len(row["prompt_ids"]) - 1


@pytest.mark.parametrize("name", LOSSES)
def test_a_step(tmp_path, world, byte_tokenizer, name):
  model, policy, reference, trainer = world
  section, ld_alpha = LOSSES[name]
  trainer.ld_alpha = ld_alpha
  parts = section.get("parts", (section,))
  trainer.loss_types = [part["name"] for part in parts]
  trainer.loss_weights = [part.get("weight", 1.0) for part in parts]
  trainer._metrics["train"].clear()
  trainer.model.zero_grad()
  inputs = trainer.data_collator(list(trainer.train_dataset))
  loss = trainer.compute_loss(trainer.model.train(), inputs)
  loss.backward()
  squares = [p.grad.square().sum() for p in trainer.model.parameters()]
  wanted = {key: values[-1] for key, values in trainer._metrics["train"].items()}

  ours = objectives.build(
    {"name": "preference", "loss": section, "reference": "copy", "ld_alpha": ld_alpha}
  )
  step = step_lib.make_step(model, ours, optax.sgd(0.1), lambda at: 0.1, accumulate_steps=1, seed=0)
  frozen = {"params": None, "adapters": {}, "reference": {"params": reference, "adapters": {}}}
  trainable = {
    "params": policy,
    "adapters": {},
    "reference": jax.tree.map(lambda leaf: None, frozen["reference"]),
  }
  frozen["params"] = jax.tree.map(lambda leaf: None, policy)
  zero = jnp.zeros((), jnp.int32)
  state = state_lib.TrainState(zero, trainable, optax.sgd(0.1).init(trainable), zero, zero)
  batch = _batch(tmp_path, ROWS, byte_tokenizer)
  _, found = jax.jit(step)(state, frozen, batch)
  means = {key: float(total / weight) for key, (total, weight) in found["sums"].items()}
  np.testing.assert_allclose(means["loss"], loss.item(), rtol=1e-3)
  np.testing.assert_allclose(found["gradient_norm"], torch.stack(squares).sum().sqrt(), rtol=1e-3)
  compared = [key for key in wanted if key.startswith(("rewards/", "logps/"))]
  assert len(compared) == 6
  for key in compared:
    np.testing.assert_allclose(means[key], wanted[key], rtol=1e-3, atol=1e-4, err_msg=key)


def test_orpo_learns_prompts_as_trl_s_does(tmp_path, world, byte_tokenizer):
  model, policy, _, trainer = world
  batch = _batch(tmp_path, ROWS, byte_tokenizer)
  inputs = {}
  for at, name in enumerate(("chosen", "rejected")):
    tokens, weights = batch["tokens"][at::2], batch["weights"][at::2]
    answers_only = np.where(np.roll(weights, 1, axis=1) > 0, tokens, -100)
    inputs[f"{name}_input_ids"] = torch.tensor(tokens).long()
    inputs[f"{name}_attention_mask"] = torch.tensor(batch["segments"][at::2] > 0).long()
    inputs[f"{name}_labels"] = torch.tensor(answers_only).long()
  theirs = SimpleNamespace(
    accelerator=SimpleNamespace(gather_for_metrics=lambda each: each, device="cpu"),
    aux_loss_enabled=False,
    beta=0.3,
    concatenated_inputs=ORPOTrainer.concatenated_inputs,
    get_batch_logps=ORPOTrainer.get_batch_logps,
    is_encoder_decoder=False,
    padding_value=0,
  )
  for method in ("concatenated_forward", "odds_ratio_loss"):
    setattr(theirs, method, partial(getattr(ORPOTrainer, method), theirs))
  trainer.model.zero_grad()
  loss, wanted = ORPOTrainer.get_batch_loss_metrics(theirs, trainer.model, inputs)
  loss.backward()
  norm = torch.stack([p.grad.square().sum() for p in trainer.model.parameters()]).sum().sqrt()

  section = {"name": "orpo", "beta": 0.3, "prompts": True}
  ours = objectives.build({"name": "preference", "loss": section})

  @jax.jit
  @partial(jax.value_and_grad, has_aux=True)
  def mean(params):
    total, weight, metrics = ours(model, {"params": params, "adapters": {}}, batch, None, 0)
    return total / weight, metrics

  (found, metrics), gradient = mean(policy)
  np.testing.assert_allclose(found, loss.item(), rtol=1e-4)
  np.testing.assert_allclose(optax.tree.norm(gradient), norm, rtol=1e-3)
  for key, (total, weight) in metrics.items():
    np.testing.assert_allclose(total / weight, wanted[key], rtol=1e-3, atol=1e-4, err_msg=key)


@pytest.fixture(scope="module")
def with_adapters(world):
  model, params, *_ = world
  rules = [{"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2}]
  adapters = peft.attach(rules, params, jax.random.key(0))
  moved = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
  return model, {"params": params, "adapters": moved}, {"params": params, "adapters": {}}


def test_references_of_the_same_model_agree(tmp_path, with_adapters, byte_tokenizer):
  model, variables, base = with_adapters
  batch = _batch(tmp_path, ROWS, byte_tokenizer)
  each = answers.log_probs(model, base, batch, None, 64)
  kept = {**batch, "reference": np.asarray(answers.row_sums(each, batch, None))}
  frozen = {"params": jax.tree.map(lambda leaf: None, base["params"]), "adapters": {}}

  def loss(reference, variables, batch):
    built = objectives.build(
      {"name": "preference", "loss": {"name": "sigmoid"}, "reference": reference}
    )
    total, weight, metrics = jax.jit(built.loss, static_argnums=0)(model, variables, batch, None, 0)
    assert weight == len(ROWS)
    np.testing.assert_allclose(
      metrics["logps/chosen_change"][0] * 0.1, metrics["rewards/chosen"][0], rtol=1e-5
    )
    return total

  wanted = loss("base", variables, batch)
  assert abs(wanted / len(ROWS) - np.log(2)) > 1e-3  # the adapters do something
  np.testing.assert_allclose(loss("copy", {**variables, "reference": frozen}, batch), wanted)
  np.testing.assert_allclose(loss("kept", variables, kept), wanted, rtol=1e-6)


def test_rows_without_a_pair_change_nothing(tmp_path, with_adapters, byte_tokenizer):
  model, variables, _ = with_adapters
  batch = _batch(tmp_path, ROWS, byte_tokenizer)
  empty = {name: np.zeros_like(rows[:2]) for name, rows in batch.items()}
  more = {name: np.concatenate([rows, empty[name]]) for name, rows in batch.items()}
  # Which compares ranks among the batch's pairs.
  objective = objectives.build({"name": "preference", "loss": {"name": "aot"}})
  few, many = (
    jax.jit(objective.loss, static_argnums=0)(model, variables, rows, None, 0)
    for rows in (batch, more)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), few, many)


@pytest.mark.parametrize(
  ("section", "message"),
  [
    ({"loss": {"name": "sigmoid"}, "reference": "none"}, "compares with a reference: base, copy"),
    ({"loss": {"name": "simpo"}, "reference": "base"}, "'simpo' has no reference: none"),
    ({"loss": {"name": "sigmoid"}, "reference": "bass"}, "did you mean 'base'"),
    ({"loss": {"name": "sigmod"}}, "did you mean 'sigmoid'"),
    ({"loss": {"name": "sigmoid", "label_smoothing": 0.1}}, "takes no 'label_smoothing'"),
    ({}, "lacks 'loss'"),
  ],
)
def test_what_cannot_be(section, message):
  with pytest.raises(ConfigError, match=message):
    objectives.build({"name": "preference", **section})


def test_values_that_cannot_be(with_adapters):
  with pytest.raises(ValueError, match="ld_alpha is from 0 to 1, not 2"):
    objectives.build({"name": "preference", "loss": {"name": "sigmoid"}, "ld_alpha": 2.0})
  with pytest.raises(ValueError, match="no metrics of tasks"):
    objectives.build({"name": "preference", "loss": {"name": "sigmoid"}}, ["a"])
  objective = objectives.build({"name": "preference", "loss": {"name": "orpo"}})
  with pytest.raises(
    ValueError, match="needs rows of chosen and rejected answers; these .* targets"
  ):
    objective(with_adapters[0], {}, {"targets": None}, None, 0)
