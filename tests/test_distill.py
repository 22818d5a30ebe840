"""The real command with a teacher: students of any kind, what is measured, and the same bits."""

import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models, peft, train
from research.core import config as config_lib
from research.core import tree
from research.data import kept
from research.loop import kept as asking
from research.loop import learner
from research.loop import teacher as teachers
from research.loop.on_policy import OnPolicy

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 64,
}
CONFIG = """
from configs import base

def get_config(what="student"):
  config = base.get_config()
  config.compilation_cache = "compiled"
  config.directory = what
  config.model.source = "model"
  config.model.dtype = "float32"
  config.model.unroll = 1
  config.teacher.source = "model"
  config.objective = {
    "name": "distillation",
    "temperature": {"name": "linear", "start": 2.0},
    "share": 0.5,
  }
  if what == "student":
    config.model.student = {"name": "sliced", "layers": 1, "mlp_size": 24}
    config.trainable = ("all",)
    rule = {"target": "layers/.*_proj/kernel", "kind": "int8", "group": 0}
    config.teacher.quantize = (rule,)
  else:
    rule = {"target": "layers/.*_proj/kernel", "kind": "nf4", "group": 16}
    config.quantize = (rule,)
    config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2},)
    config.objective.share = 1.0
  if what == "written":
    config.train.on_policy = {"share": 0.5, "max_new_tokens": 8}
    config.data.train.packing = "none"
  config.data.train.source = {"name": "jsonl", "path": "rows.jsonl", "cache": "cache"}
  config.data.train.length = 48
  config.data.train.window = 16
  config.data.eval = config.data.train.copy_and_resolve_references()
  config.optimizer.learning_rate = 1e-2
  config.train.steps = 4
  config.train.batch_size = 4
  config.checkpoint.every_steps = 2
  config.log.tensorboard = False
  config.log.peak_flops = 1e11
  return config
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, byte_tokenizer):
  root = tmp_path_factory.mktemp("distill")
  model = models.build(LLAMA)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  params = jax.tree.map(lambda x: x * 8, params)  # far from uniform: there is something to learn
  models.save(root / "model", model, params, byte_tokenizer)
  rows = [{"prompt": f"{i}", "completion": f" {i + 1}"} for i in range(20)]
  (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (root / "config.py").write_text(CONFIG)
  return root


@pytest.fixture
def command(world, monkeypatch, capsys):
  """`command(*arguments) -> (code, err)`, in this process and the world's directory."""
  monkeypatch.chdir(world)
  monkeypatch.setenv("RESEARCH_CACHE", str(world / "home"))

  def call(*arguments):
    code = train.main(arguments)
    return code, capsys.readouterr().err

  return call


def _measured(run, step):
  results = json.loads((run / f"evaluations/{step}.json").read_text())["results"]
  return results[0]["metrics"]


def _steps(run):
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  names = ("loss", "distillation/divergence", "distillation/temperature", "gradient_norm")
  return [{name: line[name] for name in names} for line in lines if "loss" in line]


def test_a_student_learns_is_measured_and_goes_on_to_the_same_bits(world, command):
  run = world / "student"
  code, err = command("--config=config.py")
  assert code == 0 and "the teacher is model: " in err
  before, after = _measured(run, 0), _measured(run, 4)
  for name in ("distillation/divergence", "distillation/cross_entropy", "loss"):
    assert after[name] < before[name]
  assert after["distillation/temperature"] == before["distillation/temperature"] == 1
  steps = _steps(run)
  np.testing.assert_allclose(
    [step["distillation/temperature"] for step in steps], [2, 5 / 3, 4 / 3, 1], rtol=1e-6
  )
  model, whole, _ = models.load(run / "model", unroll=1)
  assert (model.config.num_layers, model.config.mlp_size) == (1, 24)
  # What a checkpoint holds is the student alone.
  size = sum(file.stat().st_size for file in (run / "checkpoints/4").rglob("*") if file.is_file())
  assert size < 5 * 4 * tree.count(whole)
  (run / "results.json").unlink()
  shutil.rmtree(run / "model")
  shutil.rmtree(run / "checkpoints/4")
  code, err = command("--config=config.py")
  assert code == 0 and "going on from step 2 of 4" in err
  assert _steps(run) == steps
  jax.tree.map(np.testing.assert_array_equal, models.load(run / "model")[1], whole)


def test_an_adapter_on_a_base_in_few_bits_learns_from_the_whole(world, command):
  assert command("--config=config.py:adapter")[0] == 0
  run = world / "adapter"
  before, after = _measured(run, 0), _measured(run, 4)
  assert after["distillation/divergence"] < before["distillation/divergence"]
  assert (run / "adapter/adapter_config.json").exists()
  # The run is a teacher in its turn, and its adapter one of the same source in as few bits.
  tokenizer = models.load(world / "model")[2]
  learner = types.SimpleNamespace(tokenizer=tokenizer, variables={"adapters": {}})
  none = {"source": "", "adapter": "", "run": "", "dtype": "", "quantize": ()}
  found = []
  rule = {"target": "layers/.*_proj/kernel", "kind": "nf4", "group": 16}
  again = {"source": "model", "adapter": "adapter/adapter", "quantize": (rule,)}
  for told in ({"run": "adapter"}, again):
    own = {"dtype": "float32", "unroll": 1, "attention": "auto"}
    section = {"model": own, "teacher": none | told}
    teacher = teachers.build(config_lib.Config(section), learner)
    assert teacher.model.config.num_layers == 2
    found.append(teacher.variables)
  assert any(np.any(node.b) for _, node in peft.sites(found[0]["adapters"]))
  jax.tree.map(np.testing.assert_array_equal, *found)


def test_what_the_student_writes_is_the_same_after_a_resume(world, command):
  run = world / "written"
  assert command("--config=config.py:written", "--config.data.eval={}")[0] == 0
  due = [OnPolicy(share=0.5).numbers(0, step)[0] for step in range(4)]
  assert due[2:] in ([True, False], [False, True], [True, True])  # one is written after the resume
  steps = _steps(run)
  (run / "results.json").unlink()
  shutil.rmtree(run / "adapter")
  shutil.rmtree(run / "checkpoints/4")
  code, err = command("--config=config.py:written", "--config.data.eval={}")
  assert code == 0 and "going on from step 2 of 4" in err
  assert _steps(run) == steps


def test_the_base_as_a_teacher_is_held_once(world, command):
  flags = ("--config.directory=own", "--config.teacher.source=base", "--config.train.steps=1")
  code, err = command("--config=config.py:adapter", *flags)
  assert code == 0 and "the teacher is the base without adapters" in err
  assert _measured(world / "own", 0)["distillation/divergence"] == pytest.approx(0, abs=1e-5)


def test_a_teacher_that_was_asked_once_says_the_same(world, command, monkeypatch):
  """All its tokens kept, rounded to float16; and asked again of nothing that is on disk."""
  constant = {
    "name": "distillation",
    "share": 0.5,
    "temperature": {"name": "constant", "value": 2.0},
  }
  flags = ("--config=config.py", f"--config.objective={constant}", "--config.train.steps=2")
  # Beside the student, with an array a layer.
  assert command(*flags, "--config.directory=beside", "--config.model.unroll=0")[0] == 0
  monkeypatch.setattr(kept, "FILE_ROWS", 7)
  asked = (*flags, "--config.teacher.keep_tokens=258")
  assert command(*asked, "--config.directory=asked")[0] == 0
  for name in ("loss", "distillation/divergence", "gradient_norm"):
    ours, theirs = ([step[name] for step in _steps(world / run)] for run in ("asked", "beside"))
    np.testing.assert_allclose(ours, theirs, rtol=5e-3)
  for step in (0, 2):
    ours, theirs = (_measured(world / run, step)["loss"] for run in ("asked", "beside"))
    np.testing.assert_allclose(ours, theirs, rtol=5e-3)
  monkeypatch.setattr(teachers, "build", None)
  assert command(*asked, "--config.directory=again")[0] == 0
  assert _steps(world / "again") == _steps(world / "asked")


def test_asking_that_is_killed_goes_on_to_the_same_files(world, command, monkeypatch):
  del command  # which stands in the world's directory
  constant = {"name": "distillation", "temperature": {"name": "constant"}}
  flags = ("--config=config.py", f"--config.objective={constant}", "--config.teacher.keep_tokens=3")
  config = config_lib.from_command_line(flags)
  student = learner.build(config)
  monkeypatch.setattr(kept, "FILE_ROWS", 7)  # of 20
  ask, asked = asking._Asked.__call__, []

  def counted(self, examples):
    if len(asked) == 1:
      asked.append("killed")
      raise KeyboardInterrupt
    asked.append(len(examples))
    return ask(self, examples)

  def files(name):
    monkeypatch.setenv("RESEARCH_CACHE", str(world / name))
    asking.build(config, student, config.data.train)
    (directory,) = (world / name).rglob("teacher-*")
    return {file.name: file.read_bytes() for file in directory.iterdir()}

  whole = files("at once")
  assert len(whole) == 4
  monkeypatch.setattr(asking._Asked, "__call__", counted)
  with pytest.raises(KeyboardInterrupt):
    files("killed")
  assert files("killed") == whole
  assert asked == [7, "killed", 7, 6]


@pytest.mark.parametrize(
  ("flags", "told"),
  [
    (["--config.teacher.keep_tokens=4"], "config.objective: keep_tokens keeps a teacher at one"),
    (
      ["--config.teacher.keep_tokens=999", "--config.objective.temperature={'name': 'constant'}"],
      "keep_tokens is 999 of 258 tokens",
    ),
    (["--config.teacher.run=x"], "config.teacher: give either source"),
    (["--config.teacher.source="], "dtype and quantize are of a teacher"),
    (["--config.teacher.source=base"], "the base as a teacher is as it is"),
    (["--config.teacher.source=other"], "'<cls>' is not the same in both"),
    (["--config.teacher.source=models/nowhere"], "no model at 'models/nowhere'"),
    (["--config.objective={'name': 'causal'}"], "is for the objective 'distillation'"),
    (["--config.objective.temperature.start=0.0"], "config.objective: start is 0.0"),
    (["--config.model.student.layers=9"], "9 layers of a model that has 2"),
    (["--config.model.student.name=slice"], "did you mean 'sliced'"),
    (["--config.model.student.nam=sliced"], "has no key"),
  ],
)
def test_what_cannot_be(world, command, byte_tokenizer, flags, told):
  if not (world / "other").exists():
    shutil.copytree(world / "model", world / "other")
    file = world / "other/tokenizer.json"
    file.write_text(file.read_text().replace('"<eos>"', '"<cls>"'))
    config = world / "other/tokenizer_config.json"
    config.write_text(config.read_text().replace('"<eos>"', '"<cls>"'))
  code, err = command("--config=config.py", "--config.directory=bad", *flags)
  assert code == 2 and told in err


def test_a_base_that_trains_is_no_teacher(command):
  flags = ("--config.teacher.source=base", "--config.trainable=('all',)", "--config.adapters=()")
  code, err = command("--config=config.py:adapter", "--config.directory=bad", *flags)
  assert code == 2 and "and embed/embedding trains; name another teacher" in err
