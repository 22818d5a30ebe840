"""The real command on a toy encoder: a new head, LoRA, masked pre-training, pairs."""

import json

import jax
import jax.numpy as jnp
import pytest
import torch
import transformers

from research import evaluate, generate, models, train

BERT = {
  "model_type": "bert",
  "vocab_size": 19,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "max_position_embeddings": 32,
}
CONFIG = """
from configs import base

def get_config():
  config = base.get_config()
  config.directory = "run"
  config.compilation_cache = "compiled"
  config.model.source = "model"
  config.model.dtype = "float32"
  config.model.unroll = 1
  config.model.head = {"name": "sequence", "labels": ("sad", "glad")}
  config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 4, "alpha": 8},)
  config.trainable = ("adapters", "pooler/.*")
  config.objective = {"name": "classification"}
  config.data.train.source = {"name": "jsonl", "path": "rows.jsonl", "cache": "cache"}
  config.data.train.length = 16
  config.data.train.window = 8
  config.eval.evaluators = (
    {"name": "classification", "data": config.data.train.source, "length": 16},
  )
  config.optimizer.learning_rate = 2e-2
  config.train.steps = 40
  config.train.batch_size = 4
  config.log.tensorboard = False
  config.log.peak_flops = 1e11
  return config
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, wordpiece):
  """model/, rows.jsonl, texts.jsonl, pairs.jsonl and config.py."""
  root = tmp_path_factory.mktemp("train")
  model = models.build(BERT)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  models.save(root / "model", model, params, wordpiece)
  words, moods = ("the cat", "the dog", "cats", "the dog runs ,"), ("sad", "glad")
  texts = [(f"{who} {moods[i]}", i) for who in words for i in (0, 1)]
  files = {
    "rows": [{"text": text, "label": label} for text, label in texts],
    "texts": [{"text": text} for text, _ in texts],
    "pairs": [{"anchor": f"{who} runs", "positive": who} for who in words],
  }
  for name, rows in files.items():
    (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (root / "config.py").write_text(CONFIG)
  return root


@pytest.fixture
def command(world, monkeypatch, capsys):
  monkeypatch.chdir(world)

  def call(*arguments):
    code = train.main(["--config=config.py", *arguments])
    return code, *capsys.readouterr()

  return call


def test_a_classifier_is_trained_saved_and_read_by_transformers(world, command, capsys):
  code, out, err = command()
  assert code == 0, err
  assert "not in the checkpoint, new and trained: classifier/out/bias" in err
  results = json.loads((world / "run" / "results.json").read_text())
  after = results["evaluations"][-1]
  assert after["eval/classification/accuracy"] == 1.0
  assert {"eval/classification/f1", "eval/classification/matthews"} < set(after)
  # LoRA with a head of its own has no place in PEFT's files: the whole model is saved.
  directory = world / "run" / "model"
  assert not (world / "run" / "adapter").exists()
  reader = transformers.AutoTokenizer.from_pretrained(directory)
  theirs = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
  assert theirs.config.id2label == {0: "sad", 1: "glad"} and reader.mask_token == "[MASK]"
  for line in (world / "rows.jsonl").read_text().splitlines():
    row = json.loads(line)
    with torch.no_grad():
      logits = theirs(**reader(row["text"], return_tensors="pt")).logits
    assert logits.argmax() == row["label"]
  assert evaluate.main(["--run", str(world / "run")]) == 0
  assert "1.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("objective", "rows", "changes", "metric"),
  [
    (
      "masked",
      "texts",
      ("data.train.corruption={'name': 'mask', 'rate': 0.5}", "model.head={'name': 'masked'}"),
      0.9,
    ),
    ("embedding", "pairs", ("data.train.packing=none", "model.head={}"), 0.9),
  ],
)
def test_other_objectives_by_the_command(world, command, objective, rows, changes, metric):
  code, _, err = command(
    f"--config.directory={objective}",
    f"--config.objective={{'name': '{objective}'}}",
    f"--config.data.train.source.path={rows}.jsonl",
    "--config.trainable=all",
    "--config.adapters=()",
    "--config.eval.evaluators=()",
    "--config.train.steps=15",
    *(f"--config.{change}" for change in changes),
  )
  assert code == 0, err
  lines = (world / objective / "metrics.jsonl").read_text().splitlines()
  losses = [json.loads(line)["loss"] for line in lines]
  assert sum(losses[-5:]) < metric * sum(losses[:5])


def test_a_mistake_is_one_line(command, capsys):
  code, _, err = command("--config.model.head.name=sequenze", "--config.directory=wrong")
  assert code == 2 and "did you mean 'sequence'" in err.strip().splitlines()[-1]
  assert generate.main(["--model", "./model", "--prompt", "the cat"]) == 2
  assert "./model is a bert, which does not write" in capsys.readouterr().err
