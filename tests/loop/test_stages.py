"""Stages: what each starts from, by the real command, and that the same command goes on."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models, peft, quant, train
from research.core.config import ConfigError
from research.loop import stages
from research.models import scored

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 8,
  "intermediate_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 64,
}
NF4 = ({"target": "layers/.*_proj/kernel", "kind": "nf4", "group": 4},)
CONFIG = """
from configs import base

def get_config():
  config = base.get_config()
  config.compilation_cache = "compiled"
  config.directory = "run"
  config.model.source = "model"
  config.model.dtype = "float32"
  config.model.unroll = 1
  config.trainable = ("all",)
  config.data.train.source = {"name": "jsonl", "path": "rows.jsonl", "cache": "cache"}
  config.data.train.length = 24
  config.data.train.window = 16
  config.optimizer.learning_rate = 1e-2
  config.train.steps = 2
  config.train.batch_size = 4
  config.checkpoint.every_steps = 1
  config.log.tensorboard = False
  config.log.peak_flops = 1e11
  config.stages = (
    {"name": "teacher", "train.steps": 1},
    {
      "name": "student",
      "model.student": {"name": "sliced", "layers": 1},
      "teacher.source": "stages/teacher",
      "objective": {"name": "distillation"},
    },
  )
  return config
"""


@pytest.fixture
def world(tmp_path, byte_tokenizer, monkeypatch):
  model = models.build(LLAMA)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  models.save(tmp_path / "model", model, params, byte_tokenizer)
  rows = [{"prompt": f"{i}", "completion": f" {i + 1}"} for i in range(20)]
  (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (tmp_path / "config.py").write_text(CONFIG)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "home"))
  return tmp_path


def test_stages_start_from_each_other_and_go_on(world, capsys):
  assert train.main(["--config=config.py"]) == 0
  assert "complete: 3 steps" in capsys.readouterr().out
  run = world / "run"
  results = json.loads((run / "results.json").read_text())
  assert [results["stages"][name]["steps"] for name in ("teacher", "student")] == [1, 2]
  taught = json.loads((run / "stages/student/config.json").read_text())
  assert taught["model"]["source"] == taught["teacher"]["source"] == "run/stages/teacher/model"
  model, whole, _ = models.load(run / "stages/student/model")
  assert model.config.num_layers == 1
  # Killed inside the second stage.
  first = (run / "stages/teacher/results.json").stat().st_mtime_ns
  (run / "stages/student/results.json").unlink()
  shutil.rmtree(run / "stages/student/model")
  shutil.rmtree(run / "stages/student/checkpoints/2")
  assert train.main(["--config=config.py"]) == 0
  assert "going on from step 1 of 2" in capsys.readouterr().err
  jax.tree.map(np.testing.assert_array_equal, models.load(run / "stages/student/model")[1], whole)
  assert (run / "stages/teacher/results.json").stat().st_mtime_ns == first


def test_a_stage_after_an_adapter_starts_from_it_merged(world):
  text = CONFIG.replace(
    "  return config",
    f"""
  config.directory = "loras"
  config.trainable = ("adapters",)
  config.adapters = ({{"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2}},)
  config.quantize = {NF4}
  config.optimizer.learning_rate = 0.1
  config.stages = ({{"name": "first"}}, {{"name": "second", "train.steps": 1}})
  return config""",
  )
  (world / "loras.py").write_text(text)
  assert train.main(["--config=loras.py"]) == 0
  run = world / "loras/stages"
  # On the base as it was trained on, in few bits.
  model, params, _ = models.load("model")
  rounded = quant.dequantize(quant.quantize(params, NF4))
  adapters = peft.load(run / "first/adapter", rounded, scored.modules(model.config))
  merged = peft.merge(rounded, adapters)
  found = models.load(run / "first/model")[1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, merged)
  told = json.loads((run / "second/config.json").read_text())
  assert told["model"]["source"] == "loras/stages/first/model"
  # The last one's adapter is what it leaves.
  assert not (run / "second/model").exists() and (run / "second/adapter").is_dir()
  before = (run / "first/model/model.safetensors").stat().st_mtime_ns
  assert train.main(["--config=loras.py"]) == 0
  assert (run / "first/model/model.safetensors").stat().st_mtime_ns == before


def test_a_stage_after_an_adapter_that_cannot_be_merged(world, capsys):
  text = CONFIG.replace('("all",)', '("adapters",)\n  config.adapters = ({"name": "prompt"},)')
  text = text.replace('"model.student": {"name": "sliced", "layers": 1},', "")
  (world / "prompt.py").write_text(text)
  assert train.main(["--config=prompt.py"]) == 2
  assert "error: config.stages[0]: " in capsys.readouterr().err
  assert (world / "run/stages/teacher/adapter").is_dir()


VALUES = {
  "directory": "run",
  "trainable": ["all"],
  "model": {"source": "m", "shape": {}, "tokenizer": "", "student": {"name": "sliced"}},
  "teacher": {"source": "m"},
  "train": {"steps": 5, "rollout": {}},
}


def test_what_each_is_told():
  found = stages.configs(
    VALUES,
    [
      {"name": "a"},
      {"name": "b", "train.steps": 7, "teacher.source": "stages/a"},
      {"name": "c", "model.source": "stages/a", "model.student": {"name": "fresh"}},
    ],
  )
  a, b, c = (config.to_dict() for config in found.values())
  assert a == VALUES | {"directory": "run/stages/a"}
  assert b["model"] | b["train"] | b["teacher"] == {
    **{"source": "run/stages/a/model", "shape": {}, "tokenizer": "", "student": {}, "steps": 7},
    "rollout": {},
  }
  assert c["model"]["source"] == "run/stages/a/model" and c["train"]["steps"] == 5
  assert c["model"]["student"] == {"name": "fresh"} and c["teacher"]["source"] == "m"


def test_a_reward_is_of_an_earlier_stage():
  rewards = [{"name": "model", "run": "stages/a"}, {"name": "judge", "source": "stages/a"}]
  last = stages.configs(
    VALUES, [{"name": "a"}, {"name": "b", "train.rollout": {"rewards": rewards}}]
  )["b"].to_dict()
  assert [each.get("run", each.get("source")) for each in last["train"]["rollout"]["rewards"]] == [
    "run/stages/a",
    "run/stages/a/model",
  ]


@pytest.mark.parametrize(
  ("given", "told"),
  [
    ([{}], "needs a name of its own"),
    ([{"name": "a"}, {"name": "a"}], r"stages\[1\] needs a name of its own"),
    ([{"name": "a/b"}], "of letters, not 'a/b'"),
    ([{"name": "a", "train.step": 1}], "no key 'train.step'; did you mean 'train.steps'"),
    ([{"name": "a", "model.source": "stages/a"}], "no stage before it; there are none"),
    ([{"name": "a1"}, {"name": "b", "teacher.source": "stages/a2"}], "did you mean 'a1'"),
    (
      [{"name": "a"}, {"name": "b", "train.rollout": {"rewards": [{"run": "stages/c"}]}}],
      "'stages/c' is no stage before it",
    ),
  ],
)
def test_mistakes(given, told):
  with pytest.raises(ConfigError, match=told):
    stages.configs(VALUES, given)
