"""The step on eight forced host devices: what one device gives, and no needless collective."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from research import models

ROOT = Path(__file__).parents[2]
# Eight of what a mesh splits: heads, and rows of tables.
LLAMA = {
  "model_type": "llama",
  "vocab_size": 264,
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 8,
  "num_key_value_heads": 8,
  "max_position_embeddings": 64,
}
WRITTEN = [f"generation:{shape}" for shape in ("2,2,2,1", "1,1,8,1")]
BEGUN, JUDGED, EXPORTED = "eva:2,2,2,1", "perplexity:2,4,1,1", "exported:2,2,2,1"
RANGED = "ranged:2,2,2,1"
APART = (BEGUN, JUDGED, EXPORTED, RANGED)
ROWS, LENGTH = 8, 32
SHAPES = ("8,1,1,1", "1,8,1,1", "1,1,8,1", "1,1,1,8", "2,2,2,1", "1,2,2,2", "2,1,2,2", "2,2,1,2")
ASKED = [f"full:{shape}" for shape in SHAPES]
ASKED += [
  f"{method}:{shape}"
  for method in ("lora", "qlora", "dpo", "distillation")
  for shape in ("8,1,1,1", "2,2,2,1", "1,2,2,2")
]
ASKED += ["by_layer:2,2,2,1", "lora:1,8,1,1", "qlora:1,8,1,1"]
# Minutes of compiling, by `pytest -m slow`.
REST = [
  asked
  for method in ("lora", "qlora", "dpo", "distillation")
  for shape in SHAPES
  if (asked := f"{method}:{shape}") not in ASKED
]


@pytest.fixture(scope="module")
def find(tmp_path_factory, byte_tokenizer):
  """`(what is asked) -> what was found`, in a process with eight devices."""
  root = tmp_path_factory.mktemp("mesh")
  model = models.build(LLAMA)
  # Far from uniform: what distillation compares is more than rounding.
  params = jax.tree.map(lambda x: x * 4, models.initialize(model, jax.random.key(0)))
  models.save(root / "model", model, params, byte_tokenizer)
  rows = [{"prompt": f"{i} and", "completion": f" {i + 1} is more"} for i in range(60)]
  pairs = [{"prompt": f"{i} and", "chosen": f" {i + 1}", "rejected": " no"} for i in range(60)]
  for name, each in (("rows", rows), ("pairs", pairs)):
    (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
  environment = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
    "JAX_PLATFORMS": "cpu",
  }

  def call(asked):
    program = [sys.executable, Path(__file__).parent / "on_meshes.py", *asked]
    done = subprocess.run(program, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((root / "found.json").read_text())

  return call


@pytest.fixture(scope="module")
def found(find):
  return find([*ASKED, *WRITTEN, *APART])


@pytest.mark.parametrize("asked", ASKED)
def test_a_step_is_that_of_one_device(found, asked):
  assert found[asked]["difference"] < 1e-5


@pytest.mark.slow
def test_every_step_is_that_of_one_device_on_every_mesh(find):
  differences = {asked: told["difference"] for asked, told in find(REST).items()}
  assert set(differences) == set(REST) and max(differences.values()) < 1e-5, differences


@pytest.mark.parametrize("asked", WRITTEN)
def test_what_is_generated_is_the_same(found, asked):
  assert found[asked]["same"]


def test_eva_begins_with_the_same(found):
  ours, theirs = found[BEGUN]["ranks"]
  assert ours == theirs
  assert found[BEGUN]["difference"] < 1e-5


def test_scales_of_activations_are_the_same(found):
  assert found[RANGED]["count"] == 7 and found[RANGED]["spread"]
  assert found[RANGED]["difference"] < 1e-5


def test_rows_to_be_judged_are_split(found):
  assert found[JUDGED]["share"] == pytest.approx(1 / 8, rel=0.05)


def test_what_is_exported_is_on_no_device_whole(found):
  told = found[EXPORTED]
  assert told["same"]
  (live,) = told["live"]
  assert live < told["whole"] / 100


def _sizes(found, asked, kind):
  """How many numbers each result of the collectives of a kind has, scalars left out."""
  shapes = [
    shape for each, shapes in found[asked]["collectives"] for shape in shapes if each == kind
  ]
  sizes = [math.prod(int(n) for n in shape.split("[")[1][:-1].split(",") if n) for shape in shapes]
  return sorted(size for size in sizes if size > 1)


def _kinds(found, asked):
  return {kind for kind, _ in found[asked]["collectives"]}


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "dpo", "distillation"])
def test_copies_exchange_gradients_and_nothing_else(found, method):
  asked = f"{method}:8,1,1,1"
  # Pairs are told apart after the loss of each token, which is less than a row of activations.
  assert _kinds(found, asked) - {"all-gather"} == {"all-reduce"}
  assert set(_sizes(found, asked, "all-gather")) == (
    {2 * ROWS * LENGTH} if method == "dpo" else set()
  )
  largest = 264 * 16 if method in ("full", "distillation") else 2 * 32  # a table, or LoRA's factor
  assert _sizes(found, asked, "all-reduce")[-1] == largest


def test_split_parameters_come_to_their_rows(found):
  asked = "full:1,8,1,1"
  assert _kinds(found, asked) == {"all-gather", "all-reduce"}
  parameters = {264 * 16, 16 * 16, 16 * 32}
  assert set(_sizes(found, asked, "all-gather")) == parameters
  assert set(_sizes(found, asked, "all-reduce")) <= {*parameters, 16}  # 16: a norm's scale


def test_split_bases_come_to_their_rows_and_have_no_gradient(found):
  """One in few bits as the numbers it stands for, which each device makes its part of."""
  for method in ("lora", "qlora"):
    asked = f"{method}:1,8,1,1"
    assert _kinds(found, asked) == {"all-gather", "all-reduce"}
    tables, kernels, factors = {264 * 16}, {16 * 16, 16 * 32}, {2 * 16}
    assert set(_sizes(found, asked, "all-gather")) == tables | kernels | factors
    assert set(_sizes(found, asked, "all-reduce")) <= {2 * 16, 2 * 32}


def test_split_heads_exchange_sums_of_activations(found):
  asked = "full:1,1,8,1"
  assert _kinds(found, asked) == {"all-reduce"}
  assert _sizes(found, asked, "all-reduce")[-1] == ROWS * LENGTH * 16  # never logits


def test_split_rows_gather_keys_and_values_alone(found):
  asked = "full:1,1,1,8"
  assert _kinds(found, asked) == {"all-gather", "all-reduce"}
  sizes = set(_sizes(found, asked, "all-gather"))
  assert sizes == {LENGTH, ROWS * LENGTH, ROWS * LENGTH * 16}  # places, segments, keys and values
