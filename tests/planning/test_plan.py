"""The real command on a tiny model, for chips that are not here and for the machine that is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from research import plan
from research.core import sharding, tree
from research.loop import program
from research.planning import estimate, hlo, outline, topology

CONFIG = """
from configs import base

def get_config():
  config = base.get_config()
  config.model.source = {source!r}
  config.adapters = ({{"target": "layers/.*_proj/kernel", "name": "lora", "rank": 4}},)
  config.data.train.source = {{"name": "jsonl", "path": "nowhere.jsonl"}}
  config.data.train.length = 256
  config.train.batch_size = 8
  config.mesh = {{"data": 2, "fsdp": 2, "tensor": 1, "sequence": 1}}
  return config
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory, model_directory):
  file = tmp_path_factory.mktemp("plan") / "config.py"
  file.write_text(CONFIG.format(source=str(model_directory)))
  return file


@pytest.fixture(scope="module")
def planned(config_file, devices):
  """The exit code and the record of a plan."""
  del devices  # libtpu is there
  record = config_file.parent / "plan.json"
  flags = [f"--config={config_file}", "--topology=v5e:2x2", f"--json={record}"]
  code = plan.main([*flags, "--price=1.5", "--tokens=1e9"])
  return code, json.loads(record.read_text())


def test_what_lies_in_memory_is_told_by_kind(planned, config_of):
  code, found = planned
  assert code == 0 and found["fits"]
  variables = outline.problem(config_of()).variables
  kinds = found["memory"]
  held = tree.nbytes(variables["params"])
  # bfloat16, split in two; norms are whole.
  assert kinds["parameters"] == pytest.approx(held / 2, rel=0.02)
  assert kinds["optimizer"] == pytest.approx(2 * kinds["adapters"], rel=0.01)
  assert kinds["batch"] == 5 * 4 * 8 * 256 / 4
  assert found["total"] == pytest.approx(sum(kinds.values())) and found["total"] < found["limit"]
  assert kinds["activations"] > 3 * 256 * 256 * 2 * 2  # a row of hidden states a layer


def test_figures_agree_with_each_other(planned):
  _, found = planned
  assert found["tokens"] == 8 * 256
  assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["seconds"])
  chips = 4
  per_dollar = found["tokens_per_second"] * 3600 / (chips * 1.5)
  assert found["tokens_per_dollar"] == pytest.approx(per_dollar)
  assert found["dollars"] == pytest.approx(1e9 / per_dollar)
  assert found["days"] == pytest.approx(1e9 / found["tokens_per_second"] / 86400)
  peak = chips * 197e12 * found["seconds"]
  assert found["utilisation"] == pytest.approx(found["model_flops"] / peak)
  # A frozen base has no gradients of its own, and nothing is computed twice but for kernels.
  assert 0.9 < found["program_flops"] / found["model_flops"] < 1.5


def test_the_batch_stays_split_through_the_layers(planned, config_of):
  """What travels is parameters: each is gathered for the forward pass and for the backward one."""
  _, found = planned
  held = tree.nbytes(outline.problem(config_of()).variables["params"])
  assert sum(found["sent"].values()) < 2.5 * held
  assert found["sent"]["all-gather"] > 0.5 * held


def test_what_does_not_fit_is_told(config_file, devices, capsys):
  flags = [f"--config={config_file}", "--topology=v5e:2x2", "--config.train.batch_size=400000"]
  assert plan.main(flags) == 1
  assert "does not fit: " in capsys.readouterr().out


@pytest.mark.parametrize(
  ("flags", "told"),
  [
    (["--topology=v5e:2x2", "--price=0"], "--price is 0.0, and should be above 0"),
    (["--topology=v5e"], "no name such as v5e:4x4"),
    (["--topology=v9:2x2"], "libtpu has no topology 'v9:2x2'"),
    (["--topology=v5e:2x4"], "does not fit 8 devices"),
    (["--topology=v5e:2x2", "--config.train.batch_size=6"], "does not divide over the mesh"),
    (["--topology=local", "--price=1"], "--compare are for a topology"),
    (["--topology=v5e:2x2", "--tasks=2"], "are for --compare"),
    (["--topology=v5e:2x2", "--compare", "--budget=9"], "--budget needs --price and --tokens"),
    (["--topology=v5e:2x2", "--compare", "--search"], "either --search or --compare"),
    ([], "--topology"),
  ],
)
def test_what_cannot_be_planned(config_file, devices, capsys, flags, told):
  assert plan.main([f"--config={config_file}", *flags]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and told in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5p:2x2x1", "v6e:2x2", "7x:2x2x1"])
def test_other_topologies(name, config_of, devices):
  found = estimate.make(config_of(), name, devices(name))
  assert found.fits and 0 < found.utilisation < 1
  # Each of a model's four or, where a chip is two, eight devices has its share.
  assert found.memory["batch"] == pytest.approx(5 * 4 * 8 * 256 / (8 if name[0] == "7" else 4))


def test_program_is_no_longer_for_more_layers(config_of, devices, tmp_path, monkeypatch):
  # What the compiler's time goes by; the time itself is `benchmarks.run depth`.
  sizes, read = [], hlo.Program

  def spy(text):
    sizes.append(text.count("\n"))
    return read(text)

  monkeypatch.setattr(hlo, "Program", spy)
  for layers in (30, 120):
    shape = {"model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64}
    shape |= {"num_hidden_layers": layers, "num_attention_heads": 1}
    directory = tmp_path / str(layers)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(shape))
    changes = {"model.source": str(directory), "data.train.length": 128, "model.remat": True}
    config = config_of(changes)
    assert estimate.make(config, "v5e:2x2", devices("v5e:2x2"), quickly=True).fits
  assert sizes[0] > 1000 and sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_memory_of_a_cpu_run_is_as_predicted(config_file, tmp_path):
  # One wide layer: most of a step's memory is then what the compiler knows of.
  shape = {"model_type": "llama", "vocab_size": 16000, "hidden_size": 768}
  shape |= {"intermediate_size": 6144, "num_hidden_layers": 1, "num_attention_heads": 6}
  (tmp_path / "config.json").write_text(json.dumps(shape))
  flags = {"model.source": tmp_path, "trainable": "('all',)", "adapters": "()"}
  flags |= {"mesh.data": 1, "mesh.fsdp": 1, "train.batch_size": 1, "data.train.length": 64}
  command = [sys.executable, "-m", "research.plan", f"--config={config_file}", "--topology=local"]
  command += [f"--json={tmp_path}/found.json", *(f"--config.{k}={v}" for k, v in flags.items())]
  environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "XLA_FLAGS": ""}
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "found.json").read_text())
  assert found["peak"] == pytest.approx(found["predicted"], rel=0.2)
  assert found["predicted"] > 12 * 38e6  # parameters and two moments
  assert f"{found['tokens_per_second']:,.0f}" in done.stdout


def test_help(capsys):
  assert plan.main(["--help"]) == 0
  assert "--topology" in capsys.readouterr().out


def test_shares_of_what_is_replicated(config_of, devices):
  config = outline.without_numbers(config_of())
  mesh = sharding.make_mesh(config.mesh, devices("v5e:2x2"))
  arranged = program.arrange(config, outline.problem(config), mesh, outline.put)
  norms = (2 * 3 + 1) * 256 * 2
  whole = program.replicated(arranged)
  assert norms / 4.4e6 < whole < 0.06  # and LoRA's b


def test_another_libtpu_is_told_before_it_ends_the_process(monkeypatch):
  versions = {"libtpu": "0.0.1"}
  monkeypatch.setattr(topology.metadata, "version", versions.get)
  monkeypatch.setattr(topology.util, "find_spec", lambda name: name)
  with pytest.raises(ValueError, match=r"libtpu is 0\.0\.1, and JAX .* needs 0\.0\.\d+: pip"):
    topology.devices("v5e:2x2")
