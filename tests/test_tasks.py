"""The real command on experts, tasks rendered by templates, weights learnt and a start learnt."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models, train
from research.loop import subject

MOE = {
  "model_type": "mixtral",
  "vocab_size": 258,
  "hidden_size": 16,
  "intermediate_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "max_position_embeddings": 64,
  "num_local_experts": 4,
  "num_experts_per_tok": 2,
}
CONFIG = """
from configs import base

def task(columns):
  source = {"name": "jsonl", "path": "rows.jsonl", "cache": "cache"}
  return {"name": "templates", "source": source, "columns": columns}

def get_config():
  config = base.get_config()
  config.compilation_cache = "compiled"
  config.model.source = "model"
  config.model.dtype = "float32"
  config.model.unroll = 1
  config.adapters = (
    {"target": "layers/mlp/experts/.*/kernel", "name": "lora", "rank": 2, "alpha": 4},
  )
  config.objective = {
    "name": "causal",
    "weighting": {"name": "uncertainty"},
    "router_balance": 0.01,
    "router_z": 0.001,
  }
  config.data.train.source = {"name": "mixture", "tasks": ["up", "down"], "sources": [
    task({"prompt": "<up> {n}", "completion": " {above}"}),
    task({"prompt": "<down> {n}", "completion": " {below}"}),
  ]}
  config.data.train.length = 32
  config.data.train.packing = "none"
  config.data.train.window = 16
  config.optimizer.learning_rate = 1e-2
  config.train.steps = 4
  config.train.batch_size = 8
  config.train.accumulate_steps = 2
  config.train.meta = {
    "name": "maml", "rows_per_task": 2, "support_rows": 1, "inner_learning_rate": 0.1,
  }
  config.checkpoint.every_steps = 2
  config.log.tensorboard = False
  config.log.peak_flops = 1e11
  return config
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, byte_tokenizer):
  root = tmp_path_factory.mktemp("tasks")
  model = models.build(MOE)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  models.save(root / "model", model, params, byte_tokenizer)
  rows = [{"n": i, "above": i + 1, "below": i - 1} for i in range(20)]
  (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (root / "config.py").write_text(CONFIG)
  return root


def test_runs_goes_on_and_exports_the_merged_model(world, monkeypatch, capsys):
  monkeypatch.chdir(world)
  arguments = ["--config=config.py", "--config.directory=run"]
  assert train.main(arguments) == 0, capsys.readouterr().err
  lines = [json.loads(line) for line in (world / "run/metrics.jsonl").read_text().splitlines()]
  assert len(lines) == 4
  for line in lines:
    for name in ("loss/up", "loss/down", "router/balance", "router/z", "inner/first_loss"):
      assert math.isfinite(line[name]), name
    assert line["router/balance"] > 1.9  # of two experts a token, at least 2 if all are real
  assert lines[0]["log_variance/up"] != lines[3]["log_variance/up"]
  assert lines[0]["router/balance"] < 4

  # What was killed after a checkpoint goes on to the same numbers, learnt variances included.
  (world / "other").mkdir()
  for file in ("config.json", "environment.json"):
    (world / "other" / file).write_text((world / "run" / file).read_text())
  checkpoint = world / "run/checkpoints/2"
  assert checkpoint.is_dir()
  (world / "other/checkpoints").mkdir()
  checkpoint.rename(world / "other/checkpoints/2")
  (world / "other/metrics.jsonl").write_text(
    "".join((world / "run/metrics.jsonl").read_text().splitlines(keepends=True)[:2])
  )
  assert train.main([*arguments[:1], "--config.directory=other"]) == 0, capsys.readouterr().err
  again = [json.loads(line) for line in (world / "other/metrics.jsonl").read_text().splitlines()]
  for line, same in zip(lines, again, strict=True):
    for name in ("loss", "log_variance/up", "gradient_norm"):
      assert line[name] == same[name]

  # PEFT's format has no place for experts' factors: the model leaves whole.
  assert not (world / "run/adapter").exists()
  found = subject.load_run(world / "run")
  base, params, _ = models.load(world / "model")
  del base
  kernels = [
    p["layers"]["mlp"]["experts"]["up_proj"]["kernel"] for p in (found.variables["params"], params)
  ]
  assert np.abs(kernels[0] - kernels[1]).max() > 0
