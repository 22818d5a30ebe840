"""The real command on a base in few bits, and on one that trains on its grid."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from research import calibration, export, generate, models, peft, quant, train
from research.core import config as config_lib
from research.core import matrix, tree
from research.loop import problem, subject
from research.models import families
from research.quant.scheme import Scheme

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

def get_config(what):
  config = base.get_config()
  config.compilation_cache = "compiled"
  config.directory = what
  config.model.source = "model"
  config.model.dtype = "float32"
  config.model.unroll = 1
  if what == "qlora":
    config.quantize = (
      {"target": "layers/.*_proj/kernel", "kind": "nf4", "group": 16, "scales": "double"},
    )
    config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2},)
  elif what == "by_layer":
    config.quantize = (
      {"target": "layers/0/attention/.*", "kind": "none"},
      {"target": "layers/1/.*", "kind": "int4", "group": 16},
      {"target": "layers/.*_proj/kernel", "kind": "nf4", "group": 16},
    )
    config.model.unroll = 0
    config.adapters = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2},)
  else:
    grid = {"kind": "int4", "group": 16, "scales": "float16"}
    if what == "w8a8":
      grid = {"kind": "int8", "activations": "int8"}
    config.quantize = ({"target": "layers/.*_proj/kernel", **grid},)
    config.trainable = ("layers/mlp/.*kernel",)
  if what in ("ranged", "ranged_late"):
    ranged = {"kind": "int8", "activations": "int8", "range": "percentile", "percentile": 99.0}
    config.quantize = ({"target": "layers/mlp/.*_proj/kernel", **ranged},)
    config.optimizer.weight_decay = 0.5
    config.optimizer.weight_decay_mask = ((".*", True),)
    config.train.range_batches = 2
    config.train.round_after_steps = 2 if what == "ranged_late" else 0
  if what == "scales":
    config.quantize, config.trainable = (), ("layers/.*/kernel/scale",)
  if what in ("late", "plain"):
    learnt = {"target": "layers/mlp/.*kernel", "kind": "int3", "group": 16}
    config.quantize = (learnt,) if what == "late" else ()
    config.train.round_after_steps = 2 if what == "late" else 0
  config.data.train.source = {"name": "jsonl", "path": "rows.jsonl", "cache": "cache"}
  config.data.train.length = 48
  config.data.train.window = 16
  config.optimizer.learning_rate = 1e-2
  config.train.steps = 3
  config.train.batch_size = 4
  config.checkpoint.every_steps = 2
  config.log.tensorboard = False
  config.log.peak_flops = 1e11
  return config
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, byte_tokenizer):
  root = tmp_path_factory.mktemp("quantized")
  model = models.build(LLAMA)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  params = jax.tree.map(lambda x: x * 8, params)  # far from uniform: greedy ties are rare
  models.save(root / "model", model, params, byte_tokenizer)
  rows = [{"prompt": f"{i}", "completion": f" {i + 1}"} for i in range(20)]
  (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (root / "config.py").write_text(CONFIG)
  return root


@pytest.fixture(autouse=True)
def here(world, monkeypatch):
  monkeypatch.chdir(world)
  monkeypatch.setenv("RESEARCH_CACHE", str(world / "home"))


def _losses(run):
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  return [line["loss"] for line in lines if "loss" in line]


def test_qlora_leaves_an_adapter(world, capsys):
  assert train.main(["--config=config.py:qlora"]) == 0
  assert "the base is held in" in capsys.readouterr().err
  model, params, _ = models.load(world / "model")
  modules = families.find("llama").modules(model.config)
  adapters = peft.load(world / "qlora/adapter", params, modules)
  assert any(np.any(node.b) for _, node in peft.sites(adapters))
  losses = _losses(world / "qlora")
  assert len(losses) == 3
  assert losses[2] < losses[0]
  assert generate.main(["--run=qlora", "--prompt=7", "--max-new-tokens=2"]) == 0
  used = matrix.flatten(subject.load_run(Path("qlora")).variables["params"])
  scheme = Scheme("nf4", group=16, scales="double")
  path = "layers/mlp/up_proj/kernel"
  held = matrix.flatten(quant.quantize(params, {path: scheme}))[path]
  np.testing.assert_array_equal(used[path].codes, held.codes)


def test_a_base_whose_layers_differ_learns_and_generates(world, capsys):
  assert train.main(["--config=config.py:by_layer"]) == 0
  losses = _losses(world / "by_layer")
  assert losses[2] < losses[0]
  used = matrix.flatten(subject.load_run(Path("by_layer")).variables["params"])
  kinds = [scheme and scheme.kind for scheme in used["layers/attention/q_proj/kernel"].schemes]
  assert kinds == [None, "int4"]
  capsys.readouterr()
  assert generate.main(["--run=by_layer", "--prompt=7", "--max-new-tokens=2"]) == 0
  flags = ["--config=config.py:by_layer", "--config.directory=grid", "--config.trainable=('all',)"]
  assert train.main([*flags, "--config.adapters=()"]) == 2
  said = capsys.readouterr().err
  assert "config.quantize: 'layers/attention/" in said and "on a grid, and layers of it dif" in said


GRIDS = {
  "qat": (Scheme("int4", group=16, scales="float16"), "gptq"),
  "w8a8": (Scheme("int8", activations="int8"), "torchao"),
}


@pytest.mark.parametrize("what", GRIDS)
def test_what_trains_leaves_the_codes_that_acted(world, what):
  """Bit for bit, and so do the files of another tool that are made of them."""
  scheme, form = GRIDS[what]
  assert train.main([f"--config=config.py:{what}"]) == 0
  losses = _losses(world / what)
  assert losses[2] < losses[0]
  _, before, _ = models.load(world / "model")
  kernels = [path for path in matrix.flatten(before) if path.endswith("_proj/kernel")]
  nearest = matrix.flatten(quant.quantize(before, dict.fromkeys(kernels, scheme)))
  saved = ocp.StandardCheckpointer().restore(world / what / "checkpoints/3/state")
  acted = {path: leaf for path, leaf in tree.flatten(saved).items() if path.endswith("values")}
  after = matrix.flatten(models.load(world / what / "model")[1])
  for path in kernels:
    found = [leaf for name, leaf in acted.items() if name == f"trainable/params/{path}/values"]
    assert len(found) == path.startswith("layers/mlp/")
    held = quant.Trained(jnp.asarray(found[0]), scheme).held() if found else nearest[path]
    assert after[path].scheme == scheme
    np.testing.assert_array_equal(after[path].codes, held.codes)
    np.testing.assert_array_equal(after[path].scale, held.scale)
    assert not found or not np.array_equal(held.codes, nearest[path].codes)
  assert export.main([f"--run={what}", f"--format={form}", f"--output=written_{what}"]) == 0
  written = matrix.flatten(models.load(world / f"written_{what}")[1])
  for path in kernels:
    assert written[path].scheme == scheme
    np.testing.assert_array_equal(written[path].codes, after[path].codes)
    np.testing.assert_array_equal(written[path].scale, after[path].scale)


def test_one_scale_of_activations_is_measured_as_rounding_begins(world):
  """By the model as it is then; it stays, is in checkpoints and leaves with the codes."""
  scales = {}
  for what in ("ranged", "ranged_late"):
    assert train.main([f"--config=config.py:{what}"]) == 0
    kernels = matrix.flatten(models.load(world / what / "model")[1])
    scales[what] = {path: leaf.inputs for path, leaf in kernels.items() if "/mlp/" in path}
    saved = tree.flatten(ocp.StandardCheckpointer().restore(world / what / "checkpoints/2/state"))
    for path, scale in scales[what].items():
      assert scale.shape == (2,) and np.isfinite(scale).all()
      same = np.array_equal(saved[f"trainable/params/{path}/inputs"], scale)
      assert same == (what == "ranged")  # the other's were measured after that checkpoint
  assert _losses(world / "ranged")[2] < _losses(world / "ranged")[0]
  # Of the first layer the calibration that goes through a model layer by layer finds the same.
  config = config_lib.from_command_line(["--config=config.py:ranged"])
  stream = problem.assemble(config).batches
  batches = [next(stream) for _ in range(2)]
  scheme = Scheme("int8", activations="int8", range="percentile", percentile=99.0)
  model, params, _ = models.load(world / "model", dtype="float32")
  rules = dict.fromkeys(scales["ranged"], scheme)
  held = calibration.quantize(model, params, rules, calibration.Nearest(), batches)
  for path, kernel in matrix.flatten(held).items():
    if path in rules:
      np.testing.assert_allclose(kernel.inputs[0], scales["ranged"][path][0], rtol=1e-6)
  down = "layers/mlp/down_proj/kernel"
  assert np.all(scales["ranged"][down] != scales["ranged_late"][down])


def test_scales_alone_can_train(world):
  """Of a directory in few bits; codes stay, and scales leave as they acted (PEQA)."""
  flags = ["--config=config.py:scales", "--config.model.source=start"]
  _, params, tokenizer = models.load(world / "model")
  kernels = [path for path in matrix.flatten(params) if path.endswith("_proj/kernel")]
  scheme = Scheme("int4", group=16, symmetric=False, scales="float16")
  held = quant.quantize(params, dict.fromkeys(kernels, scheme))
  models.save_quantized(world / "start", models.build(LLAMA), held, tokenizer)
  assert train.main(flags) == 0
  losses = _losses(world / "scales")
  assert losses[2] < losses[0]
  saved = tree.flatten(ocp.StandardCheckpointer().restore(world / "scales/checkpoints/3/state"))
  before, after = (matrix.flatten(models.load(world / d)[1]) for d in ("start", "scales/model"))
  for path in kernels:
    np.testing.assert_array_equal(after[path].codes, before[path].codes)
    np.testing.assert_array_equal(after[path].zero, before[path].zero)
    learnt = saved[f"trainable/params/{path}/scale"]
    assert learnt.dtype == np.float32 and after[path].scale.dtype == np.float16
    np.testing.assert_array_equal(after[path].scale, learnt.astype(np.float16))
    assert not np.array_equal(after[path].scale, before[path].scale)
  np.testing.assert_array_equal(after["embed/embedding"], before["embed/embedding"])


def test_rounding_begins_after_some_steps(world, capsys):
  """Which train what is to be rounded as it is."""
  for what in ("late", "plain"):
    assert train.main([f"--config=config.py:{what}"]) == 0
  late, plain = (_losses(world / what) for what in ("late", "plain"))
  np.testing.assert_allclose(late[:2], plain[:2], rtol=1e-6)
  assert abs(late[2] - plain[2]) > 1e-3
  assert models.load(world / "late/model")[1]["layers"]["mlp"]["up_proj"]["kernel"].scheme.bits == 3
  capsys.readouterr()
  for flags, told in (
    (("--config=config.py:late", "--config.train.round_after_steps=3"), "of 3 steps some"),
    (("--config=config.py:plain", "--config.train.round_after_steps=1"), "nothing that trains is"),
  ):
    assert train.main([*flags, "--config.directory=other"]) == 2
    assert told in capsys.readouterr().err
