"""What is planned from shapes alone is what a run makes of files and data."""

import json

import jax
import numpy as np
import pytest

from research import models
from research.core import sharding, tree
from research.core.config import Config, ConfigError
from research.loop import problem
from research.objectives.policy import TOLD
from research.planning import outline

SHAPE = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 64,
}
LORA = {"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2}
NF4 = {"target": "layers/.*_proj/kernel", "kind": "nf4", "group": 16, "scales": "double"}
DPO = {"name": "preference", "loss": {"name": "sigmoid"}, "reference": "copy"}
DISTILLATION = {"name": "distillation", "divergence": {"name": "forward_kl"}}
RUNS = {
  "lora": {},
  "qlora from a part of the base": {"adapters": ({**LORA, "start": "pissa"},), "quantize": (NF4,)},
  "quantization-aware": {
    "trainable": ("all",),
    "adapters": (),
    "quantize": ({**NF4, "kind": "int8", "group": 0, "scales": "float32"},),
  },
  "prompt": {"adapters": ({"name": "prompt", "tokens": 3},)},
  "prefix": {"adapters": ({"name": "prefix", "tokens": 3, "init": "vocabulary"},)},
  "tasks": {
    "data.train.source": {
      "name": "mixture",
      "sources": ({"name": "jsonl", "path": "rows.jsonl"},) * 2,
      "tasks": ("a", "b"),
    },
    "objective": {"name": "causal", "weighting": {"name": "uncertainty"}},
  },
  "dpo": {
    "objective": DPO,
    "data.train.packing": "none",
    "data.train.source": {"name": "jsonl", "path": "pairs.jsonl"},
  },
  "a student": {
    "objective": DISTILLATION,
    "teacher.source": "model",
    "teacher.quantize": (NF4,),
    "model.student": {"name": "sliced", "layers": 1},
    "trainable": ("all",),
    "adapters": (),
  },
  "a policy": {
    "objective": {"name": "policy", "loss": {"name": "clipped"}, "critic": {}, "kl": 0.1},
    "data.train.packing": "none",
    "data.train.on_long_row": "drop",
    "train.rollout": {
      "rewards": ({"name": "pattern", "regex": "a"},),
      "samples": 2,
      "max_new_tokens": 20,
      "advantage": {"name": "gae"},
      "epochs": 2,
    },
  },
}


@pytest.fixture(scope="module")
def world(tmp_path_factory, byte_tokenizer):
  root = tmp_path_factory.mktemp("outline")
  model = models.build(SHAPE)
  models.save(root / "model", model, models.initialize(model, jax.random.key(0)), byte_tokenizer)
  # The longest rows fill a batch's length.
  rows = [{"prompt": "a" * 20, "completion": "b" * 40} for _ in range(8)]
  pairs = [{"prompt": "a" * 20, "chosen": "b" * 40, "rejected": "c" * 40} for _ in range(8)]
  for name, lines in (("rows", rows), ("pairs", pairs)):
    (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return root


@pytest.fixture(autouse=True)
def here(world, monkeypatch):
  monkeypatch.chdir(world)
  monkeypatch.setenv("RESEARCH_CACHE", str(world / "cache"))


@pytest.fixture
def config(config_of):
  def make(changes):
    data = {"data.train.source": {"name": "jsonl", "path": "rows.jsonl"}, "data.train.length": 48}
    return config_of(
      {"model.source": "model", "adapters": (LORA,), "train.batch_size": 4, **data, **changes}
    )

  return make


def _shapes(variables):
  return {path: (leaf.shape, leaf.dtype) for path, leaf in tree.flatten(variables).items()}


@pytest.mark.parametrize("name", RUNS)
def test_shapes_are_those_of_the_run(name, config):
  real = problem.assemble(config(RUNS[name]))
  without = outline.without_numbers(config(RUNS[name]))
  planned = outline.problem(without)
  assert _shapes(planned.variables) == _shapes(real.variables)
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(planned.variables))
  split = [
    {path for path, leaf in tree.flatten(task.variables).items() if task.trains(path, leaf)}
    for task in (real, planned)
  ]
  assert split[0] == split[1]
  mesh = sharding.make_mesh(dict.fromkeys(sharding.MESH_AXES, 1))
  batch = outline.batch(without, planned, mesh)
  rows = next(real.batches)
  if real.rewrite:
    rows = real.rewrite(0, lambda: real.variables, rows)
    rows = {name: values for name, values in rows.items() if not name.startswith(TOLD)}
  assert _shapes(batch) == _shapes(rows)


def test_random_numbers_have_those_shapes(config):
  without = outline.without_numbers(config({}))
  real = outline.problem(without, numbers=True)
  assert _shapes(real.variables) == _shapes(outline.problem(without).variables)
  kernel = np.asarray(real.variables["params"]["layers"]["mlp"]["up_proj"]["kernel"], np.float32)
  assert 0.01 < kernel.std() < 0.03


def test_a_published_shape_needs_no_files(config, monkeypatch):
  monkeypatch.delenv("RESEARCH_MODELS", raising=False)
  without = outline.without_numbers(config({"model.source": "llama-3-8b"}))
  planned = outline.problem(without)
  # As its publishers count them.
  assert tree.count(planned.variables["params"]) == 8_030_261_248
  with pytest.raises(ConfigError, match=r"put its Hugging Face files in \$RESEARCH_MODELS/llama"):
    problem.assemble(config({"model.source": "llama-3-8b"}))


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"stages": ({"name": "a"},)}, "plan a config of one of them"),
    ({"data.train.corruption": {"name": "spans"}}, "plan with corruption={}"),
  ],
)
def test_what_cannot_be_planned(changes, told, config):
  planned: Config = config(changes)
  mesh = sharding.make_mesh(dict.fromkeys(sharding.MESH_AXES, 1))
  with pytest.raises(ConfigError, match=told):
    outline.batch(planned, outline.problem(planned), mesh)
