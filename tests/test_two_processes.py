"""Two processes: what lies on both comes whole, and what they do not both see is told at once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from research import models

ROOT = Path(__file__).parent.parent
LLAMA = {
  "model_type": "llama",
  "vocab_size": 264,
  "hidden_size": 8,
  "intermediate_size": 8,
  "num_hidden_layers": 1,
  "num_attention_heads": 1,
  "max_position_embeddings": 64,
}
# What both say of each run, which differs in one thing; or what each of them says.
APART = "differs between processes:"
SAID = {
  "fetched": ("96 {'ndarray'} True", "96 set() True"),
  "steps": f"the run {APART} config.train.steps is 3 in process 0 and 4 in process 1",
  "complete": f"the run {APART} complete is true in process 0 and false in process 1",
  "rows": f"config.data.train {APART} rows is 30 in process 0 and 17 in process 1",
  "held_out": f"config.data.eval {APART} rows is 30 in process 0 and 17 in process 1",
  "missing": (
    "config.data.train: process 1 stopped: no data file at first.jsonl",
    "config.data.train: no data file at first.jsonl",
  ),
  "model": ("the model: process 1 stopped: config.model: ", "config.model: "),
  "judged": f"what perplexity reads {APART} documents is 30 long, of hash",
}
CASES = [case for case in SAID if case != "fetched"]
SCRIPT = """
import sys
from pathlib import Path
from configs import base
import jax
import numpy as np
from research.core import distributed, sharding, tree
from research.core.config import Config, ConfigError

process = int(sys.argv[1])
distributed.join(distributed.Membership(sys.argv[2], 2, process))
from research.loop import stages

def source(name):
  return {"name": "jsonl", "path": f"{name}.jsonl", "cache": "cache"}

def run(case):
  config = base.get_config()
  config.compilation_cache = ""
  config.directory = f"../runs/{case}"
  config.model.source = "../model"
  config.model.unroll = 1
  config.trainable = ("all",)
  config.data.train.source = source("same")
  config.data.train.length = 32
  config.train.batch_size = 4
  config.train.steps = 3
  config.log.tensorboard = False
  config.log.peak_flops = 1e11
  if case == "steps":
    config.train.steps += process
  elif case == "complete":
    config.directory = "runs/complete"
    if not process:
      Path("runs/complete").mkdir(parents=True)
      Path("runs/complete/results.json").write_text("{}")
  elif case == "rows":
    config.data.train.source = source("rows")
  elif case == "held_out":
    config.data.eval = config.data.train.copy_and_resolve_references()
    config.data.eval.source = source("rows")
  elif case == "missing":
    config.data.train.source = source("first")
  elif case == "model":
    config.model.source = "model"
  else:
    config.eval.evaluators = ({"name": "perplexity", "data": source("rows"), "length": 16},)
  return stages.run(Config(config.to_dict()))

def fetch():
  mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "tensor": 1, "sequence": 1})
  sizes = {
    "params/layers/attention/q_proj/kernel": (3, 4, 4),
    "params/layers/attention_norm/scale": (3, 4),
    "params/embed/embedding": (6, 4),
    "params/lm_head/kernel": (4, 6),
  }
  arrays = {path: np.random.default_rng(0).random(size) for path, size in sizes.items()}
  arrays = tree.map_with_path(lambda _, x: x.astype(np.float32), tree.unflatten(arrays))
  spread = jax.device_put(arrays, sharding.shardings(mesh, arrays))
  sharding._GATHERED_BYTES = 96  # of a table, but not of the stack
  most, wait = 0, jax.block_until_ready

  def note(waited):
    nonlocal most
    live = [x for x in jax.live_arrays() if not x.is_fully_addressable and x.is_fully_replicated]
    most = max(most, sum(x.nbytes for x in live))
    return wait(waited)

  norm = spread["params"]["layers"]["attention_norm"]["scale"].nbytes  # is whole from the start
  jax.block_until_ready = note
  found = sharding.fetched(spread, keep=process == 0)
  jax.block_until_ready = wait
  found, arrays = tree.flatten(found), tree.flatten(arrays)
  same = process == 1 or all(np.array_equal(found[path], arrays[path]) for path in arrays)
  kept = {type(leaf).__name__ for leaf in found.values()}
  print(f"fetched: {most - norm} {kept} {same}", flush=True)

fetch()
for case in sys.argv[3:]:
  try:
    run(case)
  except ConfigError as error:
    print(f"{case}: {error}", flush=True)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, byte_tokenizer):
  root = tmp_path_factory.mktemp("alike")
  model = models.build(LLAMA)
  params = models.initialize(model, jax.random.key(0))
  models.save(root / "model", model, params, byte_tokenizer)
  for process in range(2):
    (root / str(process)).mkdir()
  rows = [json.dumps({"text": f"{i} and {i + 1} is more"}) + "\n" for i in range(30)]
  for process, name, count in (
    *((0, "same", 30), (0, "rows", 30), (0, "first", 30)),
    *((1, "same", 30), (1, "rows", 17)),
  ):
    (root / str(process) / f"{name}.jsonl").write_text("".join(rows[:count]))
  (root / "0/model").symlink_to("../model")
  return root


def test_what_each_process_says(world):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  started = [
    subprocess.Popen(
      [sys.executable, "-c", SCRIPT, str(process), f"127.0.0.1:{port}", *CASES],
      cwd=world / str(process),
      env={**os.environ, "PYTHONPATH": str(ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for process in range(2)
  ]
  try:
    told = [process.communicate(timeout=120) for process in started]
  finally:
    for process in started:
      process.kill()
  assert [process.returncode for process in started] == [0, 0], told
  for process, (out, _) in enumerate(told):
    lines = [line for line in out.splitlines() if line.partition(":")[0] in SAID]
    assert len(lines) == len(SAID), told
    for line, (case, said) in zip(lines, SAID.items(), strict=True):
      expected = said if isinstance(said, str) else said[process]
      assert line.startswith(f"{case}: {expected}"), told
