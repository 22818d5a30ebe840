"""A T5 trained from random weights by the real command, and what a shape must come with."""

import json
import random

import jax
import numpy as np
import pytest
import transformers

from research import models, prepare, train

CONFIG = """
from configs import base

def get_config():
  config = base.get_config()
  config.directory = "run"
  config.compilation_cache = "off"
  config.seed = 3
  config.model.shape = {
    "model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
  }
  config.model.tokenizer = "tokenizer"
  config.model.dtype = "float32"
  config.trainable = ("all",)
  config.objective = {"name": "seq2seq"}
  config.data.train.source = {"name": "jsonl", "path": "rows.jsonl", "cache": "cache"}
  config.data.train.length = 32
  config.data.train.target_length = 48
  config.data.eval = config.data.train.copy_and_resolve_references()
  config.optimizer.learning_rate = 1e-2
  config.train.steps = 25
  config.train.batch_size = 4
  config.log.tensorboard = False
  config.log.peak_flops = 1e11
  return config
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  rng = random.Random(0)
  words = ["rot", "blau", "gelb", "grau"]
  rows = [{"prompt": " ".join(rng.choices(words, k=3))} for _ in range(80)]
  for row in rows:
    row["completion"] = row["prompt"].replace("rot", "red").replace("blau", "blue")
  (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
  (tmp_path / "config.py").write_text(CONFIG)
  flags = ["--path=rows.jsonl", "--cache=cache", "--tokenizer=tokenizer", "--vocab-kind=bpe"]
  assert prepare.main([*flags, "--vocab-size=280", "--sentinels=4"]) == 0
  return tmp_path


def test_a_t5_learns_and_is_saved(work):
  assert train.main(["--config=config.py"]) == 0
  losses = [
    json.loads((work / f"run/evaluations/{step}.json").read_text())["results"][0]["metrics"]["loss"]
    for step in (0, 25)
  ]
  assert losses[0] == pytest.approx(np.log(280), rel=0.2)  # near to knowing nothing
  assert losses[1] < 0.6 * losses[0]
  model, params, tokenizer = models.load(work / "run/model")
  theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(work / "run/model")
  assert theirs.config.decoder_start_token_id == tokenizer.pad_id == 0
  assert tokenizer.eos_ids == (1,)
  first = models.initialize(model, jax.random.key(0))
  assert jax.tree.structure(first) == jax.tree.structure(params)


def test_initial_weights_are_t5s(tmp_path):
  """Deviations of transformers' own T5, but for its head."""
  shape = {"model_type": "t5", "vocab_size": 300, "d_model": 64, "d_kv": 16, "d_ff": 128}
  model = models.build({**shape, "num_layers": 2, "num_heads": 8})
  params = models.initialize(model, jax.random.key(0))
  models.save(tmp_path, model, params)
  theirs = transformers.T5ForConditionalGeneration(
    transformers.T5Config(**shape, num_layers=2, num_heads=8)
  )
  ours = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
  expected = dict(theirs.named_parameters())
  for name, value in ours.named_parameters():
    std = expected[name].std().item()
    assert value.std().item() == pytest.approx(std, rel=0.15, abs=1e-6), name


@pytest.mark.parametrize(
  ("flags", "told"),
  [
    (["--config.model.source=x"], "give either source"),
    (["--config.model.tokenizer="], "needs a tokenizer"),
    (["--config.model.shape.vocab_size=9"], "has 280 tokens, the model's vocab_size is 9"),
    (["--config.trainable=('adapters',)"], "set trainable to 'all'"),
    (["--config.objective.name=causal"], "trains decoders, not a t5, which has seq2seq"),
  ],
)
def test_what_cannot_be(work, capsys, flags, told):
  config = (work / "config.py").read_text()
  (work / "config.py").write_text(config.replace('"num_layers"', '"vocab_size": 280, "num_layers"'))
  assert train.main(["--config=config.py", *flags]) == 2
  assert told in capsys.readouterr().err
