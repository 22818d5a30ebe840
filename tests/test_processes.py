"""The real command as several processes: stopped, killed, and gone on with on other meshes."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from research import models, train

ROOT = Path(__file__).parent.parent
LLAMA = {
  "model_type": "llama",
  "vocab_size": 264,
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 64,
}
STEPS = 400
CONFIG = f"""
from configs import base

def get_config():
  config = base.get_config()
  config.compilation_cache = "compiled"
  config.model.source = "model"
  config.model.dtype = "float32"
  config.model.unroll = 1
  config.trainable = ("all",)
  config.data.train.source = {{"name": "jsonl", "path": "rows.jsonl", "cache": "cache"}}
  config.data.train.length = 32
  config.data.train.window = 16
  config.data.eval = config.data.train.copy_and_resolve_references()
  config.optimizer.learning_rate = 1e-3
  config.optimizer.schedule = {{"name": "constant"}}
  config.train.batch_size = 8
  config.train.steps = {STEPS}
  config.checkpoint.every_steps = 5
  config.checkpoint.keep_last = {STEPS}
  config.log.every_steps = 5
  config.log.tensorboard = False
  config.log.peak_flops = 1e11
  return config
"""

# A run that writes batches itself, from EVA on, and what it measures: all ways of writing and
# judging, beside figures.
MEASURED = """
import config as trained
from research import evals, generation
from research.evals import Result

class Written:
  label = "written"

  def __init__(self):
    pass

  def __call__(self, model, variables, tokenizer):
    prompts = [tokenizer.encode(f"{i} and") for i in range(4)]
    stop = generation.StopStrings(tokenizer, ("o", "e"))
    how = {"max_new_tokens": 18, "eos_ids": tokenizer.eos_ids, "batch_size": 4}
    args = (model, variables, prompts)
    drawn = generation.generate(
      *args, generation.Sampler(1.0, repetition_penalty=1.1), stop=stop, samples=2, **how
    )
    searched = generation.beam_search(*args, num_beams=2, **how)
    requests = [generation.Request(prompt, 6 + i) for i, prompt in enumerate(prompts)]
    queued = generation.serve(
      model, variables, requests, stop=stop, eos_ids=tokenizer.eos_ids, batch_size=2
    )
    judged = generation.judge(*args, [c.tokens for c in searched], batch_size=4)
    told = [(c.tokens, c.log_probs) for c in [*drawn, *searched]]
    told += sorted((c.tokens, c.log_probs) for c in queued)
    told += [([j.greedy], j.log_probs) for j in judged]
    records = [{"id": str(i), "said": said, "logs": logs} for i, (said, logs) in enumerate(told)]
    return Result(self.label, {"sum": sum(sum(logs) for _, logs in told)}, records, {})

evals.EVALUATORS["written"] = Written

def get_config():
  config = trained.get_config()
  rows = {"name": "jsonl", "cache": "cache"}
  config.eval.evaluators = (
    {"name": "perplexity", "data": {**rows, "path": "texts.jsonl"}, "length": 16, "batch_size": 3},
    {
      "name": "verifiable",
      "data": {**rows, "path": "problems.jsonl"},
      "max_new_tokens": 8,
      "batch_size": 4,
      "sampler": {"name": "sample"},
      "strategy": {
        "name": "best_of_n",
        "samples": 2,
        "judge": {"name": "verdict", "question": "?", "marks": {"a": 1.0, "b": 0.0}},
      },
    },
    {"name": "written"},
  )
  config.adapters = (
    {"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2, "start": "eva", "batches": 2},
  )
  config.teacher.source = "teacher"
  config.objective = {"name": "distillation"}
  config.data.train.packing = "none"
  config.train.on_policy = {"share": 0.8, "max_new_tokens": 4}
  config.eval.every_steps = 4
  config.train.steps = 8
  config.checkpoint.every_steps = 4
  config.optimizer.learning_rate = 1e-2
  return config
"""

# Answers of its own that it learns from twice: PPO.
POLICY = """
import config as trained

def get_config():
  config = trained.get_config()
  config.data.train.source = {"name": "jsonl", "path": "problems.jsonl", "cache": "cache"}
  config.data.train.packing = "none"
  config.data.train.on_long_row = "drop"
  config.data.eval = {}
  config.objective = {
    "name": "policy", "loss": {"name": "clipped"}, "critic": {}, "kl": 0.1, "reward_kl": 0.1,
    "reference": "copy",
  }
  config.train.rollout = {
    "rewards": (
      {"name": "pattern", "regex": "[a-m]"},
      {"name": "judge", "question": "{answer}?", "source": "teacher"},
    ),
    "samples": 2,
    "max_new_tokens": 6,
    "advantage": {"name": "gae"},
    "epochs": 2,
  }
  config.train.steps = 4
  config.eval.evaluators = ()
  config.optimizer.learning_rate = 1e-2
  return config
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, byte_tokenizer):
  root = tmp_path_factory.mktemp("processes")
  model = models.build(LLAMA)
  for key, name in enumerate(("model", "teacher")):
    params = models.initialize(model, jax.random.key(key))
    models.save(root / name, model, params, byte_tokenizer)
  rows = [{"prompt": f"{i} and", "completion": f" {i + 1} is more"} for i in range(60)]
  (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  texts = [{"text": f"{i} and {i + 1}, " * (i + 1)} for i in range(5)]
  (root / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
  problems = [{"prompt": f"{i} and" * (1 + i % 3), "answer": str(i + 1)} for i in range(7)]
  (root / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
  (root / "config.py").write_text(CONFIG)
  (root / "measured.py").write_text(MEASURED)
  (root / "policy.py").write_text(POLICY)
  return root


def _start(world, directory, processes, devices, mesh, config="config.py"):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
  command = [sys.executable, "-m", "research.train", f"--config={config}"]
  command += [f"--config.directory={directory}", *(f"--config.mesh.{axis}" for axis in mesh)]
  started = []
  for process in range(processes):
    environment = {
      **os.environ,
      "PYTHONPATH": str(ROOT),
      "XLA_FLAGS": flags,
      "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
      "JAX_NUM_PROCESSES": str(processes),
      "JAX_PROCESS_ID": str(process),
    }
    with (world / f"{directory}_{process}.txt").open("w") as out:
      started.append(
        subprocess.Popen(command, cwd=world, env=environment, stdout=out, stderr=out, text=True)
      )
  return started


def _wait_for(path, world, directory, processes):
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline:
    assert all(process.poll() is None for process in processes), _said(world, directory, processes)
    if path.exists():
      return
    time.sleep(0.1)
  raise AssertionError(_said(world, directory, processes))


def _saved(directory):
  return max(
    int(each.name) for each in (directory / "checkpoints").iterdir() if each.name.isdigit()
  )


def _said(world, directory, processes):
  return [(world / f"{directory}_{i}.txt").read_text() for i in range(len(processes))]


def _losses(directory):
  lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
  return {line["step"]: line["loss"] for line in lines if "loss" in line}


def _one(world, monkeypatch, directory, *flags, config="config.py"):
  monkeypatch.chdir(world)
  return train.main([f"--config={config}", f"--config.directory={directory}", *flags])


def _evaluations(directory, step):
  told = json.loads((directory / f"evaluations/{step}.json").read_text())["results"]
  return {result["name"]: result for result in told}


def test_a_signal_to_one_process_stops_all_and_fewer_devices_go_on(world, monkeypatch):
  """Eight devices, then four, then one, with the losses of one."""
  stopped = 0
  for devices, mesh in ((4, ["fsdp=4", "tensor=2"]), (2, ["data=1", "fsdp=2", "tensor=2"])):
    started = _start(world, "stopped", 2, devices, mesh)
    _wait_for(world / f"stopped/checkpoints/{stopped // 5 * 5 + 5}", world, "stopped", started)
    started[1].send_signal(signal.SIGTERM)
    codes = [process.wait(60) for process in started]
    said = _said(world, "stopped", started)[0]
    assert codes == [143, 143], said
    assert not stopped or f"going on from step {stopped} of {STEPS}" in said
    stopped = _saved(world / "stopped")
    assert f"SIGTERM: saved step {stopped}" in said
  assert f"SIGTERM: saved step {stopped}" in (world / "stopped/process_1/log.txt").read_text()
  until = stopped + 3
  assert _one(world, monkeypatch, "whole", f"--config.train.steps={until}") == 0
  # The schedule is constant, so that the run may be a shorter one; its directory says otherwise.
  file = world / "stopped" / "config.json"
  told = json.loads(file.read_text())
  told["train"]["steps"] = until
  file.write_text(json.dumps(told))
  assert _one(world, monkeypatch, "stopped", f"--config.train.steps={until}") == 0
  expected, found = _losses(world / "whole"), _losses(world / "stopped")
  assert list(found) == list(expected) == list(range(1, until + 1))
  np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=2e-5)


def test_a_killed_process_ends_the_run_with_its_name(world):
  started = _start(world, "killed", 4, 1, ["data=4"])
  _wait_for(world / "killed/checkpoints/5", world, "killed", started)
  started[2].kill()
  killed = time.monotonic()
  codes = [process.wait(120) for process in started]
  seconds = time.monotonic() - killed
  assert seconds < 60
  assert 0 not in codes
  said = _said(world, "killed", started)
  assert re.search(r"error: process [013] of 4 stopped, as another may have", "".join(said))
  assert re.search(r"Task 2 heartbeat|stopped sending heartbeats\):\s+2\n", said[0]), said[0]
  # What was saved goes on, here as two processes.
  saved = _saved(world / "killed")
  again = _start(world, "killed", 2, 1, ["data=2"])
  _wait_for(world / f"killed/checkpoints/{saved + 5}", world, "killed", again)
  again[0].send_signal(signal.SIGTERM)
  assert [process.wait(60) for process in again] == [143, 143], _said(world, "killed", again)
  assert f"going on from step {saved} of {STEPS}" in _said(world, "killed", again)[0]


def test_a_process_that_hangs_ends_the_run_with_its_name(world):
  started = _start(world, "hung", 2, 1, ["data=2"])
  _wait_for(world / "hung/checkpoints/5", world, "hung", started)
  started[1].send_signal(signal.SIGSTOP)
  assert started[0].wait(60) != 0
  started[1].kill()
  started[1].wait(60)
  said = _said(world, "hung", started)[0]
  assert re.search(r"Task 1 heartbeat|stopped sending heartbeats\):\s+1\n", said), said
  assert _saved(world / "hung") >= 5


def test_evaluations_are_those_of_one_process(world, monkeypatch):
  monkeypatch.syspath_prepend(str(world))
  assert _one(world, monkeypatch, "alone", config="measured.py") == 0
  # One process evaluated at step 4 and saved it; two go on from there, and have to agree that they
  # need not do so again.
  shutil.copytree(world / "alone", world / "joined")
  shutil.rmtree(world / "joined/checkpoints/8")
  (world / "joined/results.json").unlink()
  (world / "joined/evaluations/8.json").unlink()
  started = _start(world, "joined", 2, 1, ["fsdp=2"], config="measured.py")
  codes = [process.wait(240) for process in started]
  assert codes == [0, 0], _said(world, "joined", started)
  assert not (world / "joined/process_1/evaluations").exists()
  evaluated = [
    [line["step"] for line in map(json.loads, file.read_text().splitlines()) if "loss" not in line]
    for file in (world / "joined/metrics.jsonl", world / "joined/process_1/metrics.jsonl")
  ]
  assert evaluated == [[0, 4, 8], [8]]
  alone, joined = (list(_losses(world / name).values()) for name in ("alone", "joined"))
  np.testing.assert_allclose(joined, alone, rtol=1e-4)
  expected, found = _evaluations(world / "alone", 8), _evaluations(world / "joined", 8)
  assert list(found) == list(expected) == ["held_out", "perplexity", "verifiable", "written"]
  before = _evaluations(world / "alone", 0)
  assert expected["verifiable"]["records"] != before["verifiable"]["records"]
  for name, result in found.items():
    for metric, figure in result["metrics"].items():
      np.testing.assert_allclose(figure, expected[name]["metrics"][metric], rtol=1e-4)
  pairs = (each["verifiable"]["records"] for each in (found, expected))
  for ours, theirs in zip(*pairs, strict=True):
    rounded = [
      [*each["trace"].pop("values"), *(sample.pop("log_prob") for sample in each["samples"])]
      for each in (ours, theirs)
    ]
    assert ours == theirs
    np.testing.assert_allclose(*rounded, rtol=1e-3)
  for ours, theirs in zip(found["written"]["records"], expected["written"]["records"], strict=True):
    assert ours["said"] == theirs["said"]
    np.testing.assert_allclose(ours["logs"], theirs["logs"], rtol=1e-3, atol=1e-3)


def test_a_policy_writes_and_learns_what_it_does_in_one_process(world, monkeypatch):
  monkeypatch.syspath_prepend(str(world))
  assert _one(world, monkeypatch, "policy", config="policy.py") == 0
  started = _start(world, "policies", 2, 1, ["fsdp=2"], config="policy.py")
  codes = [process.wait(240) for process in started]
  assert codes == [0, 0], _said(world, "policies", started)
  alone, joined = (
    [json.loads(line) for line in (world / name / "metrics.jsonl").read_text().splitlines()]
    for name in ("policy", "policies")
  )
  assert len(alone) == len(joined) == 4
  for ours, theirs in zip(joined, alone, strict=True):
    for name in ("loss", "reward", "entropy", "objective/kl", "completions/mean_length"):
      np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5, err_msg=name)
