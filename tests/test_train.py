"""The real command on a toy model: to the end, killed, stopped, and wrong in every way."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file

from research import models, peft, train
from research.data.tokenizer import Tokenizer
from research.evals import Result
from research.loop import subject as subject_lib
from research.models import families

ROOT = Path(__file__).parent.parent
LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "max_position_embeddings": 256,
  "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0,
  "tie_word_embeddings": True,
}
CONFIG = """
from configs import base

def get_config():
  config = base.get_config()
  config.directory = "run"
  config.compilation_cache = "compiled"
  config.model.source = "model"
  config.model.unroll = 1
  config.adapters = (
    {"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2, "alpha": 4, "dropout": 0.1},
  )
  config.data.train.source = {"name": "jsonl", "path": "rows.jsonl", "cache": "cache"}
  config.data.train.length = 64
  config.data.train.window = 8
  config.data.eval = config.data.train.copy_and_resolve_references()
  config.optimizer.learning_rate = 1e-2
  config.train.steps = 60
  config.train.batch_size = 8
  config.train.accumulate_steps = 2
  config.checkpoint.every_steps = 4
  config.log.every_steps = 20
  config.log.peak_flops = 1e11
  return config
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """model/, rows.jsonl and config.py."""
  root = tmp_path_factory.mktemp("train")
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens(["<bos>", "<eos>"])
  tokenizer = Tokenizer(backend, {"bos_token": "<bos>", "eos_token": "<eos>"}, ())
  model = models.build(LLAMA)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  models.save(root / "model", model, params, tokenizer)
  rows = [{"prompt": f"{i} and one is", "completion": f" {i + 1}."} for i in range(60)]
  (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (root / "config.py").write_text(CONFIG)
  return root


@pytest.fixture
def command(world, monkeypatch, capsys):
  """`command(*arguments) -> (code, out, err)`, in this process and the world's directory."""
  monkeypatch.chdir(world)

  def call(*arguments):
    code = train.main(arguments)
    return code, *capsys.readouterr()

  return call


@pytest.fixture(scope="module")
def whole(world):
  """The run directory of the config as it stands, and what the command printed."""
  before = Path.cwd()
  os.chdir(world)
  try:
    assert train.main(["--config=config.py", "--config.directory=whole"]) == 0
  finally:
    os.chdir(before)
  return world / "whole"


def _lines(directory):
  """The lines of metrics.jsonl without what the clock decides; a torn last line left out."""
  file = directory / "metrics.jsonl"
  text = file.read_text() if file.exists() else ""
  timed = ("seconds", "data_seconds", "tokens_per_second", "useful_tokens_per_second")
  timed += ("model_flops_utilization",)
  lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
  return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def test_a_run_trains_and_leaves_what_it_promises(world, whole, command):
  lines = _lines(whole)
  steps = [line for line in lines if "loss" in line]
  assert [line["step"] for line in steps] == list(range(1, 61))
  assert np.mean([s["loss"] for s in steps[-5:]]) < 0.95 * np.mean([s["loss"] for s in steps[:5]])
  evaluations = [line for line in lines if "loss" not in line]
  assert [line["step"] for line in evaluations] == [0, 60]
  before, after = (line["eval/held_out/loss"] for line in evaluations)
  assert after < 0.95 * before
  saved = json.loads((whole / "evaluations" / "60.json").read_text())
  (result,) = [Result.from_json(result) for result in saved["results"]]
  assert result.metrics["loss"] == after
  assert json.loads((whole / "adapter" / "adapter_config.json").read_text())["r"] == 2
  raw = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
  rated = [line for line in raw if "tokens_per_second" in line]
  assert len(rated) == 59
  for line in rated:
    assert 0 < line["useful_tokens_per_second"] <= line["tokens_per_second"]
    assert line["model_flops_utilization"] > 0
    assert line["padding"] == pytest.approx(1 - line["useful_tokens"] / line["tokens"])
  assert list((whole / "tensorboard").iterdir())
  config = json.loads((whole / "config.json").read_text())
  assert config["train"]["steps"] == 60 and config["directory"] == "whole"
  assert (whole / "environment.json").exists()
  # Again: told, not done.
  code, out, err = command("--config=config.py", "--config.directory=whole")
  assert code == 0 and not err
  assert out.startswith("complete: 60 steps") and "whole/results.json" in out
  assert _lines(whole) == lines


def _start(world, *arguments):
  """The command as a process of its own."""
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  return subprocess.Popen(
    [sys.executable, "-m", "research.train", "--config=config.py", *arguments],
    cwd=world,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _signal_at(process, directory, step, signum):
  """Sends a signal as soon as the line of `step` is there."""
  deadline = time.monotonic() + 300
  while process.poll() is None and time.monotonic() < deadline:
    if any(line["step"] >= step for line in _lines(directory)):
      process.send_signal(signum)
      break
    time.sleep(0.005)
  _, err = process.communicate(timeout=300)
  return process.returncode, err


def test_killed_and_stopped_the_same_command_ends_with_the_same_bits(world, whole):
  directory = world / "killed"
  flag = "--config.directory=killed"
  code, err = _signal_at(_start(world, flag), directory, 6, signal.SIGKILL)
  assert code == -signal.SIGKILL, err
  reached = max(line["step"] for line in _lines(directory))
  assert 6 <= reached < 60
  code, err = _signal_at(_start(world, flag), directory, reached + 8, signal.SIGTERM)
  assert code == 128 + signal.SIGTERM, err
  assert "SIGTERM: saved step" in err
  stopped = max(line["step"] for line in _lines(directory))
  process = _start(world, flag)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  assert f"going on from step {stopped} of 60" in err
  # What was killed cost at most the steps since the last checkpoint; what was stopped none.
  starts = json.loads((directory / "environment.json").read_text())
  assert [start["first_step"] for start in starts][0::2] == [0, stopped]
  assert starts[1]["first_step"] % 4 == 0 and reached - 6 <= starts[1]["first_step"] <= reached
  assert _lines(directory) == _lines(whole)
  ours = load_file(whole / "adapter" / "adapter_model.safetensors")
  theirs = load_file(directory / "adapter" / "adapter_model.safetensors")
  assert ours.keys() == theirs.keys()
  for name, tensor in ours.items():
    np.testing.assert_array_equal(theirs[name], tensor, err_msg=name)
  for name in ("loss", "evaluations", "steps"):
    told = [json.loads((d / "results.json").read_text())[name] for d in (directory, whole)]
    assert told[0] == told[1]


def test_an_adapter_that_began_as_a_part_of_the_base_goes_on_from_the_same_base(world, command):
  rule = {"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2, "start": "pissa"}
  arguments = (
    "--config=config.py",
    "--config.directory=part",
    f"--config.adapters=({rule},)",
    "--config.train.steps=4",
    "--config.checkpoint.every_steps=2",
    "--config.optimizer.lora_plus_ratio=4.0",
    "--config.data.eval={}",
    "--config.log.tensorboard=false",
  )
  directory = world / "part"
  assert command(*arguments)[0] == 0
  whole = load_file(directory / "adapter" / "adapter_model.safetensors")
  lines = _lines(directory)
  (directory / "results.json").unlink()
  shutil.rmtree(directory / "adapter")
  shutil.rmtree(directory / "checkpoints" / "4")
  code, _, err = command(*arguments)
  assert code == 0 and "going on from step 2 of 4" in err
  assert _lines(directory) == lines
  again = load_file(directory / "adapter" / "adapter_model.safetensors")
  for name, tensor in whole.items():
    np.testing.assert_array_equal(again[name], tensor, err_msg=name)
  # For the base as it was: what was learnt, in twice the rank.
  config = json.loads((directory / "adapter" / "adapter_config.json").read_text())
  assert config["r"] == 4 and config["init_lora_weights"] is True


def test_a_run_that_begins_by_its_data_and_trains_a_module_goes_on_to_the_same_bits(world, command):
  """EVA's directions are of the first batches, whenever the run starts; the table is saved, too."""
  text = CONFIG.replace('"rank": 2, "alpha": 4', '"rank": 2, "start": "eva", "batches": 2')
  (world / "eva.py").write_text(
    text.replace(".model.unroll = 1", '.trainable = ("adapters", "embed/.*")')
  )
  arguments = (
    "--config=eva.py",
    "--config.directory=eva",
    "--config.model.unroll=1",
    "--config.train.steps=4",
    "--config.checkpoint.every_steps=2",
    "--config.data.eval={}",
    "--config.log.tensorboard=false",
  )
  directory = world / "eva"
  assert command(*arguments)[0] == 0
  file = directory / "adapter" / "adapter_model.safetensors"
  whole, lines = load_file(file), _lines(directory)
  (directory / "results.json").unlink()
  shutil.rmtree(directory / "adapter")
  shutil.rmtree(directory / "checkpoints" / "4")
  code, _, err = command(*arguments)
  assert code == 0 and "going on from step 2 of 4" in err
  assert _lines(directory) == lines
  again = load_file(file)
  for name, tensor in whole.items():
    np.testing.assert_array_equal(again[name], tensor, err_msg=name)
  ranks = {name: len(a) for name, a in whole.items() if "lora_A" in name}
  assert sum(ranks.values()) == 28 and len(set(ranks.values())) > 1
  # The table that is the head has moved, and is what the result is loaded with.
  subject = subject_lib.load_run(directory, "float32")
  table = whole["base_model.model.model.embed_tokens.weight"]
  np.testing.assert_array_equal(subject.variables["params"]["embed"]["embedding"], table)
  before = models.load(world / "model")[1]["embed"]["embedding"]
  assert np.abs(table - before).max() > 1e-3


def test_everything_can_train_and_is_saved_whole(world, command):
  code, _, err = command(
    "--config=config.py",
    "--config.directory=all",
    "--config.trainable=all",
    "--config.adapters=()",
    "--config.train.steps=2",
    "--config.data.eval={}",
    "--config.log.tensorboard=false",
    "--config.log.gradients=true",
  )
  assert code == 0, err
  assert "(100.00%) are trained" in err
  for line in _lines(world / "all"):
    parts = [line[name] for name in line if name.startswith("gradients/")]
    assert len(parts) == LLAMA["num_hidden_layers"] + 1 and "gradients/layers/0" in line
    assert np.linalg.norm(parts) == pytest.approx(line["gradient_norm"], rel=1e-5)
  before = load_file(world / "model" / "model.safetensors")
  after = load_file(world / "all" / "model" / "model.safetensors")
  assert before.keys() == after.keys()
  assert all(np.any(before[name] != after[name]) for name in before)
  assert not (world / "all" / "adapter").exists()


@pytest.mark.parametrize(
  ("arguments", "told"),
  [
    ((), "which config"),
    (("--config=confg.py",), "no config file 'confg.py'; did you mean 'config.py'"),
    (("--config=config.py", "--config.train.step=3"), "'train.step'; did you mean 'train.steps'"),
    (("--config=config.py", "--config.train.steps=few"), "config.train.steps=few"),
    (("--config=config.py", "--config.model.source=./modl"), "config.model: no model at './modl'"),
    (("--config=config.py", "--config.model.dtype=float31"), "config.model: .*float31"),
    (
      ("--config=config.py", "--config.model.attention=flash"),
      "config.model: attention 'flash' is none of auto, xla, splash, cudnn",
    ),
    (
      ("--config=config.py", "--config.model.remat=atention"),
      "config.model: .*'attention'.*True or",
    ),
    (("--config=config.py", "--config.trainable=.*/bias"), "config.trainable: rule '.*/bias'"),
    (("--config=config.py", "--config.adapters[0].ranc=2"), "'adapters.0..ranc'"),
    (("--config=config.py", "--config.adapters[0].target=layer/.*"), "config.adapters: rule"),
    (
      (
        "--config=config.py",
        "--config.adapters=({'target': 'layers/.*_proj/kernel', 'name': 'dora'},)",
        "--config.trainable=all",
      ),
      "config.trainable: DoRA needs the kernel at 'layers/attention/k_proj/kernel' frozen",
    ),
    (("--config=config.py", "--config.objective.name=casual"), "did you mean 'causal'"),
    (("--config=config.py", "--config.data.train.packing=best"), "config.data.train: .*best_fit"),
    (
      (
        "--config=config.py",
        "--config.data.train.curriculum={'name': 'phases', 'phases': ({'until': 0.9},)}",
      ),
      "config.data.train: a curriculum's phases end at 1, the end of the run, the last one at 0.9",
    ),
    (("--config=config.py", "--config.mesh.data=7"), "config.mesh"),
  ],
)
def test_a_mistake_is_one_line_and_code_2(command, arguments, told):
  code, out, err = command(*arguments, "--config.directory=wrong" if arguments else "--stray")
  assert code == 2 and not out
  (line,) = err.strip().splitlines()
  assert line.startswith("error: ")
  assert re.search(told, line), line


def test_help_explains(command):
  code, out, _ = command("--help")
  assert code == 0
  for word in ("--config=", "--config.KEY=VALUE", "configs/base.py", "Ctrl-C", "Exit codes"):
    assert word in out


def test_tasks_and_corruption_by_the_command(world, command):
  rows = {"name": "jsonl", "path": "rows.jsonl", "cache": "cache"}
  source = {"name": "mixture", "sources": (rows, rows), "weights": (2, 1), "tasks": ("a", "b")}
  code, *_ = command(
    "--config=config.py",
    "--config.directory=tasks",
    "--config.train.steps=3",
    f"--config.data.train.source={source}",
    "--config.data.train.corruption={'name': 'prefix', 'split': 'prompt'}",
    "--config.data.eval={}",
  )
  assert code == 0
  for line in _lines(world / "tasks"):
    low, high = sorted((line["loss/a"], line["loss/b"]))
    assert 0 < low <= line["loss"] <= high and 0 <= line["accuracy/a"] <= 1


def test_a_curriculum_by_the_command(world, command):
  """Resumed in one phase and going through the next, it ends with the same bits."""
  phases = ({"until": 0.75, "length": 16, "share": 0.5}, {"until": 1})
  curriculum = {"name": "phases", "by": "length", "phases": phases}
  arguments = (
    "--config=config.py",
    "--config.directory=curriculum",
    "--config.train.steps=4",
    "--config.train.accumulate_steps=1",
    "--config.data.train.length=32",
    f"--config.data.train.curriculum={curriculum}",
    "--config.checkpoint.every_steps=2",
    "--config.data.eval={}",
    "--config.log.tensorboard=false",
  )
  directory = world / "curriculum"
  code, _, err = command(*arguments)
  assert code == 0 and "a curriculum of 2 phases, by length, which end at steps 3, 4" in err
  whole = load_file(directory / "adapter" / "adapter_model.safetensors")
  lines = _lines(directory)
  assert [line["tokens"] for line in lines] == [8 * 16] * 3 + [8 * 32]
  assert [line["curriculum/share"] for line in lines] == [0.5, 0.5, 0.5, 1]
  assert [line["curriculum/phase"] for line in lines] == [1, 1, 1, 2]
  (directory / "results.json").unlink()
  shutil.rmtree(directory / "adapter")
  shutil.rmtree(directory / "checkpoints" / "4")
  code, _, err = command(*arguments)
  assert code == 0 and "going on from step 2 of 4" in err
  assert _lines(directory) == lines
  again = load_file(directory / "adapter" / "adapter_model.safetensors")
  for name, tensor in whole.items():
    np.testing.assert_array_equal(again[name], tensor, err_msg=name)


def test_virtual_tokens_by_the_command(world, command):
  """P-tuning trains a network, goes on with it, and leaves the embeddings it made."""
  base = load_file(world / "model" / "model.safetensors")
  arguments = (
    "--config=config.py",
    "--config.directory=p_tuning",
    "--config.adapters=({'name': 'p_tuning', 'tokens': 3, 'hidden_size': 8},)",
    "--config.train.steps=6",
  )
  assert command(*arguments)[0] == 0
  lines = _lines(world / "p_tuning")
  steps = [line["loss"] for line in lines if "loss" in line]
  evaluated = [line["eval/held_out/loss"] for line in lines if "eval/held_out/loss" in line]
  assert len(steps) == 6 and evaluated[-1] < evaluated[0]
  saved = load_file(world / "p_tuning" / "adapter" / "adapter_model.safetensors")
  assert {name: tensor.shape for name, tensor in saved.items()} == {"prompt_embeddings": (3, 32)}
  config = json.loads((world / "p_tuning" / "adapter" / "adapter_config.json").read_text())
  assert (config["peft_type"], config["num_virtual_tokens"]) == ("P_TUNING", 3)
  model, params, _ = models.load(world / "model")
  adapters = peft.load(
    world / "p_tuning" / "adapter", params, families.find("llama").modules(model)
  )
  assert peft.virtual_ids(adapters) == [-1, -2, -3]
  after = load_file(world / "model" / "model.safetensors")
  assert all(np.array_equal(after[name], base[name]) for name in base)


@pytest.mark.parametrize(
  ("name", "argument", "told"),
  [
    ("prefix", "trainable=all", "config.adapters: the Prefix .* cannot be merged"),
    ("prompt", "data.train.length=20", "leaves no room beside 20 virtual tokens"),
  ],
)
def test_what_sites_cannot_have(command, name, argument, told):
  rule = f"--config.adapters=({{'name': '{name}'}},)"
  arguments = ("--config.directory=wrong", rule, f"--config.{argument}")
  code, _, err = command("--config=config.py", *arguments)
  assert code == 2
  assert re.search(told, err), err
