"""A reward model by the real command: learnt, saved, and read by transformers, PEFT and us."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft as hf_peft
import pytest
import torch
import transformers

from configs import base
from research import models
from research.core.config import Config, ConfigError
from research.loop import run, subject
from research.models import scored

LLAMA = {
  "model_type": "llama",
  "vocab_size": 259,
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 64,
}
LORA = ({"target": "layers/attention/._proj/kernel", "name": "lora", "rank": 2},)
LENGTHS = (5, 9, 7)


@pytest.fixture(scope="module")
def world(tmp_path_factory, byte_tokenizer):
  root = tmp_path_factory.mktemp("reward")
  model = models.build(LLAMA)
  models.save(root / "model", model, models.initialize(model, jax.random.key(0)), byte_tokenizer)
  rng = np.random.default_rng(0)
  word = lambda: "".join(rng.choice(list("abcdef"), rng.integers(1, 7)))  # noqa: E731
  pairs = [
    {"prompt": word(), "chosen": " x" + word(), "rejected": " y" + word(), "margin": 0.5}
    for _ in range(12)
  ]
  (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
  return root


@pytest.fixture(autouse=True)
def here(world, monkeypatch):
  monkeypatch.chdir(world)
  monkeypatch.setenv("RESEARCH_CACHE", str(world / "home"))


def _config(directory, **changes):
  config = base.get_config()
  config.compilation_cache = "compiled"
  config.directory = directory
  config.model.source = "model"
  config.model.dtype = "float32"
  config.model.unroll = 1
  config.model.head = {"name": "score"}
  config.adapters = LORA
  config.objective = {"name": "reward", "centring": 0.01}
  config.data.train.source = {"name": "jsonl", "path": "pairs.jsonl", "cache": "cache"}
  config.data.train.length = 24
  config.data.train.packing = "none"
  config.optimizer.learning_rate = 3e-2
  config.optimizer.schedule = {"name": "constant"}
  config.train.steps = 20
  config.train.batch_size = 4
  config.log.tensorboard = False
  config.log.peak_flops = 1e11
  with config.unlocked():
    for key, value in changes.items():
      config[key] = value
  return config


def _texts():
  rng = np.random.default_rng(1)
  tokens = rng.integers(0, 256, (3, 9)).astype(np.int32)
  segments = (np.arange(9) < np.array(LENGTHS)[:, None]).astype(np.int32)
  return np.where(segments, tokens, 258), segments


def _ours(model, variables):
  tokens, segments = _texts()
  batch = {
    "tokens": jnp.asarray(np.where(segments, tokens, 0)),
    "segments": jnp.asarray(segments),
    "positions": jnp.asarray(np.where(segments, np.arange(9), 0).astype(np.int32)),
  }
  return np.asarray(scored.scores(model, variables, batch))


def _theirs(model):
  tokens, segments = _texts()
  model.config.pad_token_id = 258
  model.config.get_text_config().pad_token_id = 258
  with torch.no_grad():
    return model(torch.tensor(tokens), attention_mask=torch.tensor(segments)).logits[:, 0].numpy()


def test_a_whole_model_is_transformers_and_is_loaded_back(world):
  config = _config("whole", adapters=(), trainable=("all",))
  section = config.data.train.to_dict()
  config.data.eval = section
  config.eval.evaluators = ({"name": "reward", "data": section["source"], "length": 24},)
  results = run.run(Config(config.to_dict()))
  before, after = results["evaluations"]
  assert after["eval/held_out/accuracy"] == 1.0 > before["eval/held_out/accuracy"]
  for name in ("accuracy", "margin"):
    np.testing.assert_allclose(
      after[f"eval/reward/{name}"], after[f"eval/held_out/{name}"], rtol=1e-5
    )
  assert after["eval/reward/calibration_error"] < before["eval/reward/calibration_error"]
  model, params, _ = models.load("whole/model")
  assert model.config.head == "score"
  saved = json.loads((world / "whole/model/config.json").read_text())
  assert saved["architectures"] == ["LlamaForSequenceClassification"]
  theirs = transformers.AutoModelForSequenceClassification.from_pretrained("whole/model").eval()
  found = _ours(model, {"params": params})
  assert np.ptp(found) > 0.1
  np.testing.assert_allclose(_theirs(theirs), found, atol=1e-4)
  loaded = subject.load_run(world / "whole")
  np.testing.assert_array_equal(_ours(loaded.model, loaded.variables), found)


def test_an_adapter_is_peft_s_with_the_score_beside(world):
  run.run(Config(_config("lora").to_dict()))
  saved = json.loads((world / "lora/adapter/adapter_config.json").read_text())
  assert saved["modules_to_save"] == ["score"] and saved["task_type"] == "SEQ_CLS"
  base_model = transformers.AutoModelForSequenceClassification.from_pretrained(
    "model", num_labels=1
  )
  theirs = hf_peft.PeftModel.from_pretrained(base_model, "lora/adapter").eval()
  loaded = subject.load_run(world / "lora")
  found = _ours(loaded.model, loaded.variables)
  assert np.ptp(found) > 0.1
  np.testing.assert_allclose(_theirs(theirs), found, atol=1e-4)


def test_what_cannot_be():
  config = _config("wrong", objective={"name": "causal"})
  with pytest.raises(ConfigError, match="'causal' needs no head for scores"):
    run.run(Config(config.to_dict()))
  config = _config("classes")
  config.model.head = {"name": "sequence", "labels": 2}
  with pytest.raises(ConfigError, match="is for encoders, not a llama"):
    run.run(Config(config.to_dict()))
  config = _config("headless")
  config.model.head = {}
  with pytest.raises(ConfigError, match="needs config.model.head = {'name': 'score'}"):
    run.run(Config(config.to_dict()))
