"""One sweep of the real command, on a toy model: it is read, run, and told."""

import csv
import json
import os
from pathlib import Path

from launch import sweep

CONFIG = """
from configs import base

def get_config():
  config = base.get_config()
  config.compilation_cache = "compiled"
  config.model.shape = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
  }
  config.model.tokenizer = "tokenizer"
  config.model.dtype = "float32"
  config.trainable = ("all",)
  config.data.train.source = {"name": "jsonl", "path": "rows.jsonl", "cache": "cache"}
  config.data.train.length = 32
  config.data.eval = config.data.train.copy_and_resolve_references()
  config.train.steps = 6
  config.train.batch_size = 4
  config.log.tensorboard = False
  config.log.peak_flops = 1e11
  return config
"""


def test_a_real_run_is_told_and_one_that_blows_up_is_told_too(
  tmp_path, monkeypatch, capsys, byte_tokenizer, describe
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH')}")
  byte_tokenizer.save(tmp_path / "tokenizer")
  rows = [{"prompt": f"{i} and", "completion": f" {i}."} for i in range(40)]
  (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
  (tmp_path / "config.py").write_text(CONFIG)
  describe(
    "metrics=('eval/held_out/loss', 'loss'), seeds=(7,), baseline='slow', points={"
    "'slow': {'optimizer.learning_rate': 1e-3}, 'blows up': {'optimizer.learning_rate': 1e38,"
    " 'optimizer.schedule': {'name': 'constant'}, 'optimizer.weight_decay': 1.0}}"
  )
  assert sweep.main(["--experiment=study", "--parallel=2", "--tries=1"]) == 1
  out, _ = capsys.readouterr()
  root = tmp_path / "runs" / "study"
  assert "blows_up/seed_7" in out and "error: the gradient of params/" in out
  results = json.loads((root / "slow" / "seed_7" / "results.json").read_text())
  (row,) = [
    row
    for row in csv.DictReader((root / "results.csv").read_text().splitlines())
    if row["point"] == "slow" and row["metric"] == "eval/held_out/loss"
  ]
  assert float(row["mean"]) == results["evaluations"][-1]["eval/held_out/loss"]
  config = json.loads((root / "slow" / "seed_7" / "config.json").read_text())
  assert config["seed"] == 7 and config["optimizer"]["learning_rate"] == 1e-3
