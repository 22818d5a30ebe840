"""The real command by a config: a toy model calibrated, rounded, written, and interrupted."""

import ast
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import calibration, export, generate, models, peft, quant
from research.calibration import rounding
from research.core import config as config_lib
from research.core import matrix
from research.data import vocabulary
from research.models import scored

LLAMA = {
  "model_type": "llama",
  "vocab_size": 288,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 64,
}
CONFIG = """
from configs import base_export

def get_config():
  config = base_export.get_config()
  config.compilation_cache = "off"
  config.model.source = "{root}/base"
  config.quantize = (
    {{"target": "layers/.*_proj/kernel", "kind": "int4", "group": 16, "symmetric": False,
      "scales": "float16", "fit": "mse"}},
  )
  config.method = {{"name": "gptq", "act_order": True}}
  config.calibration.source = {{"name": "text", "path": "{root}/text.txt"}}
  config.calibration.length = 32
  config.calibration.rows = 12
  config.calibration.dtype = "float32"
  config.format = "gptq"
  return config
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A folder with a base, a text and a config."""
  root = tmp_path_factory.mktemp("quantize")
  model = models.build(LLAMA)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape), jnp.float32), shapes)
  words = [" ".join(rng.choice(["the", "theme", "of", "them", "all"], 40)) for _ in range(30)]
  models.save(
    root / "base", model, params, vocabulary.train(words, size=262, kind="bpe", sentinels=2)
  )
  (root / "text.txt").write_text("\n".join(words))
  (root / "config.py").write_text(CONFIG.format(root=root))
  return root


@pytest.fixture
def run(root, capsys):
  def call(*arguments, config=root / "config.py"):
    code = export.main([f"--config={config}", *map(str, arguments)])
    return code, *capsys.readouterr()

  return call


def _params(directory):
  return matrix.flatten(models.load(directory)[1])


@pytest.fixture(scope="module")
def done(root):
  """What the config describes, in one go."""
  assert export.main([f"--config={root}/config.py", f"--config.output={root}/whole"]) == 0
  return _params(root / "whole")


def test_a_config_is_what_the_library_does(root, run, tmp_path):
  code, out, _ = run(f"--config.output={tmp_path / 'out'}")
  assert code == 0 and out.endswith(f"saved {tmp_path / 'out'}\n")
  assert "layer 2 of 2" in out
  config = config_lib.from_command_line([f"--config={root}/config.py"])
  model, params, tokenizer = models.load(root / "base")
  plan = calibration.plan(config, tokenizer)
  assert plan.method == calibration.GPTQ(act_order=True)
  assert sum(batch["tokens"].shape[0] for batch in plan.batches) == 12
  meant = matrix.flatten(plan.apply(model, params, lambda layer, layers: None))
  for path, leaf in _params(tmp_path / "out").items():
    assert isinstance(leaf, quant.QArray) == path.endswith("_proj/kernel")
    if isinstance(leaf, quant.QArray):
      jax.tree.map(
        np.testing.assert_array_equal, jax.tree.leaves(leaf), jax.tree.leaves(meant[path])
      )


def test_the_table_is_measured(run, tmp_path):
  code, out, _ = run(f"--config.output={tmp_path / 'out'}")
  assert code == 0
  rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
  count = 2 * 32 * 64  # numbers of a projection of both layers
  held = (
    count // 2 + count // 16 * 3 + 2 * 32 * 4
  )  # codes; scales and zero points; groups of inputs
  assert rows["mlp/up_proj"] == [
    f"{count:,}",
    f"{2 * count:,}",
    f"{held:,}",
    f"{8 * held / count:.3f}",
  ]
  size = (tmp_path / "out/model.safetensors").stat().st_size
  assert rows["model.safetensors"] == [f"{size:,}"]
  total = sum(leaf.size for leaf in _params(tmp_path / "out").values())
  assert out.count(f"{total:,}") == 2


def test_an_interrupted_run_goes_on(run, done, tmp_path, monkeypatch):
  kept, out = tmp_path / "layers", tmp_path / "out"
  flags = (f"--config.directory={kept}", f"--config.output={out}")
  layer, calls = rounding._layer, []

  def counted(*arguments):
    calls.append(1)
    if len(calls) == 2:
      raise RuntimeError("stopped")
    return layer(*arguments)

  monkeypatch.setattr(rounding, "_layer", counted)
  code, _, err = run(*flags)
  assert code == 2 and "stopped" in err and not out.exists()
  assert [file.name for file in kept.iterdir()] == ["layer_000.safetensors"]
  first = (kept / "layer_000.safetensors").stat().st_mtime_ns
  assert run(*flags)[0] == 0
  assert (kept / "layer_000.safetensors").stat().st_mtime_ns == first
  for path, leaf in _params(out).items():
    jax.tree.map(np.testing.assert_array_equal, leaf, done[path])


def test_what_was_written_generates(done, root, capsys):
  del done
  flags = ("--prompt=the theme", "--temperature=0", "--max-new-tokens=4", "--dtype=float32")
  assert generate.main([f"--model={root / 'whole'}", *flags]) == 0
  assert capsys.readouterr().out


def test_it_becomes_arrays_for_other_formats(done, root, run, tmp_path, capsys):
  flags = [f"--model={root / 'whole'}", "--format=hf", f"--output={tmp_path / 'hf'}"]
  assert export.main(flags) == 0
  assert "hf gets the numbers that kernels in few bits stand for" in capsys.readouterr().out
  for path, leaf in _params(tmp_path / "hf").items():
    np.testing.assert_array_equal(leaf, done[path].astype(jnp.float32))


def test_without_rules_it_merges_alone(run, tmp_path, root):
  plain = tmp_path / "config.py"
  plain.write_text(
    "from configs import base_export\n\n\ndef get_config():\n"
    f"  config = base_export.get_config()\n  config.model.source = '{root}/base'\n"
    "  config.compilation_cache = 'off'\n  return config\n"
  )
  code, _, _ = run("--config.format=hf", f"--config.output={tmp_path / 'hf'}", config=plain)
  assert code == 0
  jax.tree.map(np.testing.assert_array_equal, _params(tmp_path / "hf"), _params(root / "base"))


def test_an_adapter_alone(root, run, tmp_path):
  plain = tmp_path / "config.py"
  plain.write_text(
    "from configs import base_export\n\n\ndef get_config():\n"
    f"  config = base_export.get_config()\n  config.model.source = '{root}/base'\n"
    "  config.compilation_cache = 'off'\n  config.format = 'peft'\n  return config\n"
  )
  model, params, _ = models.load(root / "base")
  rules = [{"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2}]
  adapters = peft.attach(rules, params, jax.random.key(0))
  peft.save(tmp_path / "lora", adapters, scored.modules(model.config))
  given, out = f"--config.model.adapter={tmp_path / 'lora'}", f"--config.output={tmp_path / 'out'}"
  assert run(given, out, config=plain)[0] == 0
  # But for the base's name, which these files lack.
  name = "adapter_model.safetensors"
  assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "lora" / name).read_bytes()
  for flags, message in (
    ((), "config.model: .*base is given no adapter"),
    ((given, "--config.format=peftt"), "config.format: .*did you mean 'peft'"),
    ((given, "--config.method.name=gptq"), "config.method is how to follow `quantize`"),
    ((given, '--config.quantize=({"target": ".*", "kind": "int8"},)'), "holds no codes of ours"),
  ):
    code, _, err = run(*flags, f"--config.output={tmp_path / 'other'}", config=plain)
    assert code == 2 and re.search(message, err), err
  assert not (tmp_path / "other").exists()


OPEN = '{"target": "layers/%s_proj/kernel", "group": 16, "scales": "float16", "kind": %s}'
SEVERAL = OPEN % (".*", '("int2", "int4")')
WRONG = {
  "output": ((), "config.output: where to"),
  "format": (("--config.format=gptqq",), "config.format: format 'gptqq' is unknown.*did you mean"),
  "type": (("--config.type=float32",), "config.format: gptq has no type 'float32'"),
  "codes": (("--config.format=gguf",), "format 'gguf' holds no codes of ours"),
  "scheme": (("--config.format=bitsandbytes",), "config.quantize: bitsandbytes' files hold nf4"),
  "key": (("--config.calibration.row=3",), "no key 'calibration.row'; did you mean"),
  "rows": (("--config.calibration.rows=0",), "config.calibration: rows is 0"),
  "text": (("--config.calibration.source.path=nowhere",), "config.calibration: .*nowhere"),
  "tokens": (("--config.calibration.rows=1",), "calibration data has .* give at least as many"),
  "two models": (("--config.model.run=x",), "config.model: give a source"),
  "method": (("--config.method.name=nearest",), "config.method.act_order: nearest takes no"),
  "a kind of several": (
    (f"--config.quantize=({OPEN % ('.*', ('int4', 'e4m3'))},)", "--config.bits=5"),
    "config.quantize: GPTQ's files hold int2, .* not e4m3",
  ),
  "kinds of two rules": (
    (f"--config.quantize=({OPEN % ('.*up', ('int4',))}, {SEVERAL})", "--config.bits=5"),
    "config.quantize: .* is held as .*: gptq has one scheme a model",
  ),
  "kinds of layers": (
    (f"--config.quantize=({SEVERAL[:-1]}, 'each': 'layer'}},)", "--config.bits=5"),
    "config.quantize: gptq has one scheme for all layers; 'each' is for format 'native'",
  ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be(run, tmp_path, case):
  flags, message = WRONG[case]
  output = () if case == "output" else (f"--config.output={tmp_path / 'out'}",)
  code, out, err = run(*flags, *output)
  assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
  assert "nats a token" not in out
  assert re.search(message, err), err
  assert not list(tmp_path.iterdir())


def test_kinds_are_chosen_within_a_budget(root, run, tmp_path):
  """Two rules of two kinds each: what is written keeps to the bits, and takes more than it must."""
  text = CONFIG.format(root=root).replace('"gptq", "act_order": True', '"nearest"')
  text = text.replace('"gptq"', '"native"')
  rules = "".join(
    f'{{"target": "layers/{part}/.*_proj/kernel", "kind": ("int2", "int8"), "group": 16}},'
    for part in ("attention", "mlp")
  )
  start, end = text.index("  config.quantize"), text.index("  config.method")
  text = f"{text[:start]}  config.quantize = ({rules})\n{text[end:]}"
  file = tmp_path / "open.py"
  file.write_text(text)
  code, out, _ = run(f"--config.output={tmp_path / 'out'}", "--config.bits=9", config=file)
  assert code == 0 and out.count("nats a token") == 4
  params = _params(tmp_path / "out")
  kinds = {path: leaf.scheme.kind for path, leaf in params.items() if "_proj" in path}
  parts = {part: {k for p, k in kinds.items() if part in p} for part in ("attention", "mlp")}
  # All of int8 takes 10 bits, its scales included: one part has to do with less.
  assert sorted(map(sorted, parts.values())) == [["int2"], ["int8"]]
  for flags, message in (
    ((), "config.bits: how many a parameter may take"),
    (("--config.bits=3",), "config.bits: the fewest bits of all rules take"),
  ):
    code, _, err = run(f"--config.output={tmp_path / 'other'}", *flags, config=file)
    assert code == 2 and message in err
  code, _, err = run(f"--config.output={tmp_path / 'other'}", "--config.bits=4")
  assert code == 2 and "config.bits is for rules of config.quantize that have several kinds" in err


def test_kinds_are_chosen_layer_by_layer(root, run, tmp_path, capsys):
  """Each layer is told and chosen; the rules that are told give what was written."""
  text = CONFIG.format(root=root).replace('"gptq", "act_order": True', '"nearest"')
  text = text.replace('"gptq"', '"native"')
  rule = (
    '{"target": "layers/.*_proj/kernel", "kind": ("int2", "int8"), "group": 16, "each": "layer"}'
  )
  start, end = text.index("  config.quantize"), text.index("  config.method")
  file = tmp_path / "open.py"
  file.write_text(f"{text[:start]}  config.quantize = ({rule},)\n{text[end:]}")
  code, out, _ = run(f"--config.output={tmp_path / 'out'}", "--config.bits=7", config=file)
  assert code == 0 and out.count("nats a token") == 4
  assert "rule 0, layer 1: int8 takes" in out
  chosen = [ast.literal_eval(line[8:]) for line in out.splitlines() if line.startswith("chosen: ")]
  assert sorted(rule["kind"] for rule in chosen) == ["int2", "int8"]
  params = _params(tmp_path / "out")
  meant = matrix.flatten(quant.quantize(models.load(root / "base")[1], chosen))
  for path, leaf in params.items():
    assert isinstance(leaf, quant.Mixed) == path.endswith("_proj/kernel")
    jax.tree.map(np.testing.assert_array_equal, leaf, meant[path])
  # Two bits and eight, and a scale of four bytes for sixteen numbers.
  assert re.search(r"mlp/up_proj .* 7\.000\n", out)
  flags = ("--prompt=the theme", "--temperature=0", "--max-new-tokens=4", "--dtype=float32")
  assert generate.main([f"--model={tmp_path / 'out'}", *flags]) == 0
  assert capsys.readouterr().out
  file.write_text(file.read_text().replace("layers/.*_proj/kernel", "embed/embedding"))
  code, _, err = run(f"--config.output={tmp_path / 'x'}", "--config.bits=7", config=file)
  assert code == 2 and err.startswith(
    "error: config.quantize: each 'layer' is for what layers have"
  )


def test_scales_of_activations_are_held_and_generate(root, run, tmp_path, capsys):
  text = CONFIG.format(root=root).replace('"gptq", "act_order": True', '"nearest"')
  text = text.replace('"gptq"', '"native"')
  rule = (
    '{"target": "layers/.*_proj/kernel", "kind": "int8", "activations": "int8",'
    ' "range": "percentile", "percentile": 99.0}'
  )
  start, end = text.index("  config.quantize"), text.index("  config.method")
  file = tmp_path / "static.py"
  file.write_text(f"{text[:start]}  config.quantize = ({rule},)\n{text[end:]}")
  assert run(f"--config.output={tmp_path / 'out'}", config=file)[0] == 0
  config = config_lib.from_command_line([f"--config={file}"])
  model, params, tokenizer = models.load(root / "base")
  plan = calibration.plan(config, tokenizer)
  meant = matrix.flatten(plan.apply(model, params, lambda layer, layers: None))
  for path, leaf in _params(tmp_path / "out").items():
    if path.endswith("_proj/kernel"):
      assert leaf.inputs.shape == (2,) and (leaf.inputs > 0).all()
      np.testing.assert_array_equal(leaf.inputs, meant[path].inputs)
  flags = ("--prompt=the theme", "--temperature=0", "--max-new-tokens=4", "--dtype=float32")
  assert generate.main([f"--model={tmp_path / 'out'}", *flags]) == 0
  assert capsys.readouterr().out
  code, _, err = run(
    "--config.calibration.source={}", f"--config.output={tmp_path / 'other'}", config=file
  )
  assert code == 2 and "the range of activations is calibrated by text" in err


def test_flags_say_how_codes_are_asked_for(root, tmp_path, capsys):
  flags = [f"--model={root / 'base'}", "--format=gptq", f"--output={tmp_path / 'out'}"]
  assert export.main(flags) == 2
  assert "nothing is held in few bits; rules in a config's `quantize`" in capsys.readouterr().err
