"""The real command on a toy model: adapters merged, formats, and what is refused."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import peft as hf_peft
import pytest
import torch
import transformers

from research import export, models, peft
from research.core import tree
from research.data import vocabulary
from research.io import gguf
from research.models import families, formats

LLAMA = {
  "model_type": "llama",
  "vocab_size": 288,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 64,
}
LORA = {"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2, "alpha": 8}
PREFIX = {"name": "prefix", "tokens": 3}
BOTTLENECK = {"name": "bottleneck", "size": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """A folder with a base, adapters, and a run of the LoRA; and the merged parameters."""
  root = tmp_path_factory.mktemp("export")
  model = models.build(LLAMA)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  rng = np.random.default_rng(0)
  random = lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32)  # noqa: E731
  params = jax.tree.map(random, shapes)
  tokenizer = vocabulary.train(["the theme of them all"] * 4, size=262, kind="bpe", sentinels=2)
  models.save(root / "base", model, params, tokenizer)
  modules = families.find("llama").modules(model.config)
  merged = {}
  for name, rule in (("lora", LORA), ("prefix", PREFIX), ("bottleneck", BOTTLENECK)):
    adapters = tree.map_with_path(
      lambda path, leaf: random(leaf) / 8 if path.endswith(("/a", "/b", "/keys")) else leaf,
      peft.attach([rule], params, jax.random.key(0)),
    )
    peft.save(root / name, adapters, modules, base_model=str(root / "base"))
    if name == "lora":
      merged = peft.merge(params, peft.load(root / name, params, modules))
      peft.save(root / "run/adapter", adapters, modules, base_model=str(root / "base"))
      changed = tree.map_with_path(lambda path, leaf: leaf + path.startswith("lm_head"), params)
      beside = peft.with_saved(adapters, changed, ["lm_head/kernel"])
      peft.save(root / "beside", beside, modules, base_model=str(root / "base"))
  config = {"model": {"source": str(root / "base"), "dtype": "bfloat16"}}
  models.save(root / "whole/model", model, params, tokenizer)
  for name in ("run", "whole"):
    (root / name / "config.json").write_text(json.dumps(config))
  return root, merged


@pytest.fixture
def run(world, capsys):
  def call(*arguments, base=True):
    model = [f"--model={world[0] / 'base'}"] if base else []
    code = export.main([*model, *map(str, arguments)])
    return code, *capsys.readouterr()

  return call


def _row(out):
  """The line of figures, the last of the table, in columns."""
  return out.split("\n\n")[0].splitlines()[-1].split()


def test_a_directory_is_what_peft_merges(world, run, tmp_path):
  root, merged = world
  out = tmp_path / "new/merged"
  code, told, _ = run(f"--adapter={root / 'lora'}", "--format=hf", f"--output={out}")
  assert code == 0 and told.endswith(f"saved {out}\n")
  base = transformers.AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
  theirs = hf_peft.PeftModel.from_pretrained(base, root / "lora").merge_and_unload().state_dict()
  ours = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
  assert set(ours) == set(theirs)
  for name, value in theirs.items():
    torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-5, msg=name)
  sizes = {path.name: path.stat().st_size for path in out.iterdir()}
  for name, size in sizes.items():
    assert f"{name} " in told and f" {size:,}" in told
  count, total = tree.count(merged), sum(sizes.values())
  assert _row(told) == ["all", f"{total:,}", f"{count:,}", f"{total / count:.3f}", "0"]
  assert [path.name for path in out.parent.iterdir()] == ["merged"]


def test_bfloat16_is_rounded_once(world, run, tmp_path):
  out = tmp_path / "merged"
  out.mkdir()  # an empty directory is nothing to overwrite
  flags = (f"--adapter={world[0] / 'lora'}", "--format=hf", "--type=bfloat16", f"--output={out}")
  code, told, _ = run(*flags)
  assert code == 0
  _, found, _ = models.load(out)
  for path, leaf in tree.flatten(found).items():
    rounded = tree.flatten(world[1])[path].astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(leaf, rounded)
  assert 1e-3 < float(_row(told)[4]) < 0.1


def test_a_run_as_gguf(world, run, tmp_path):
  root, merged = world
  out = tmp_path / "run.gguf"
  code, told, _ = run(
    f"--run={root / 'run'}", "--format=gguf", "--type=Q4_1", f"--output={out}", base=False
  )
  assert code == 0
  _, found, _ = models.load(out)
  worst = {
    path: float(np.abs(np.asarray(leaf) - np.asarray(tree.flatten(merged)[path])).max())
    for path, leaf in tree.flatten(found).items()
  }
  name, size, count, share, difference, at = _row(told)
  assert (name, size) == ("run.gguf", f"{out.stat().st_size:,}")
  assert worst[at] == max(worst.values()) == pytest.approx(float(difference), rel=1e-2)
  assert count == f"{tree.count(merged):,}"
  assert share == f"{out.stat().st_size / tree.count(merged):.3f}"
  assert gguf.read(out).tensors.stored("blk.1.ffn_up.weight")[0] == "Q4_1"


WRONG = {
  "format": (
    ("--format=ggml",),
    "format 'ggml' is unknown; known: hf, gguf, .*did you mean 'gguf'",
  ),
  "type": (("--format=gguf", "--type=Q4_2"), "gguf has no type 'Q4_2'; it has F32, .*did you mean"),
  "hf type": (("--format=hf", "--type=int8"), "hf has no type 'int8'; it has float32, bfloat16"),
  "adapter": (("--format=hf", "--adapter={root}/prefix"), "Prefix at .* cannot be merged"),
  "run": (("--format=hf", "--run={root}/base"), "is not a run's config"),
  "no adapter": (("--format=peft",), "base is given no adapter, which is what is to be written"),
  "no adapter of a run": (("--format=peft", "--run={root}/whole"), "whole has no adapter; it is"),
  "no method of PEFT's": (
    ("--format=peft", "--adapter={root}/bottleneck"),
    "PEFT has no bottlenecks, as at 'layers/attention_out'",
  ),
  "peft type": (
    ("--format=peft", "--type=bfloat16"),
    "peft has no type 'bfloat16'; it has float32",
  ),
  "a stretched adapter": (
    ("--format=peft", "--adapter={root}/lora", "--stretch=yarn:4"),
    "--stretch changes the model, of which peft holds nothing",
  ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be(world, run, tmp_path, case):
  flags, message = WRONG[case]
  flags = [flag.format(root=world[0]) for flag in flags]
  base = not any(flag.startswith("--run") for flag in flags)
  code, _, err = run(*flags, f"--output={tmp_path / 'out'}", base=base)
  assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
  assert re.search(message, err)
  assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(run, tmp_path):
  file, directory = tmp_path / "x.gguf", tmp_path / "full"
  file.write_text("x")
  directory.mkdir()
  (directory / "notes").write_text("x")
  wrong = (
    ("gguf", file, "is a file that exists"),
    ("hf", directory, "is a directory that is not empty"),
    ("gguf", directory, "is a directory, and what is written is a file"),
  )
  for form, path, what in wrong:
    # Which is told before a model is loaded.
    code, _, err = run("--model=nowhere", f"--format={form}", f"--output={path}", base=False)
    assert code == 2 and what in err
  assert file.read_text() == "x" and [p.name for p in directory.iterdir()] == ["notes"]


def test_a_format_that_loads_otherwise_leaves_nothing(world, run, tmp_path, monkeypatch):
  def wrong(path, model, params, tokenizer, type):
    del type
    tokenizer.chat_template = "other"
    models.save(path, model, params, tokenizer)
    tokenizer.chat_template = None

  monkeypatch.setitem(formats.FORMATS, "hf", formats.Format(("float32",), "float32", True, wrong))
  code, _, err = run("--format=hf", f"--output={tmp_path / 'out'}")
  assert code == 2 and "was loaded with chat_template 'other', not None" in err
  assert not list(tmp_path.iterdir())


def test_flags_that_do_not_go_together(run, tmp_path):
  for flags in (["--run=x"], ["--adapter=x", "--run=x"]):
    with pytest.raises(SystemExit):
      run("--format=hf", f"--output={tmp_path}", *flags)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_stretched_positions_are_those_that_transformers_has(world, run, tmp_path, kind):
  out = tmp_path / "long"
  code, _, _ = run(f"--stretch={kind}:4", "--format=hf", f"--output={out}")
  assert code == 0
  model, params, _ = models.load(out)
  assert model.config.max_positions == 4 * 64
  theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
  assert theirs.config.max_position_embeddings == 4 * 64
  tokens = np.random.default_rng(0).integers(0, 288, (1, 200))
  ours = jax.jit(model.apply)({"params": params}, jnp.asarray(tokens))
  with torch.no_grad():
    expected = theirs(torch.asarray(tokens)).logits.numpy()
  np.testing.assert_allclose(ours, expected, atol=1e-3 * np.abs(expected).max())
  # Another model than the base on the same parameters.
  base, _, _ = models.load(world[0] / "base")
  plain = base.apply({"params": params}, jnp.asarray(tokens[:, :64]))
  assert np.abs(ours[:, :64] - plain).max() > 0.05 * np.abs(expected).max()
  code, _, told = run(
    f"--model={out}", "--stretch=yarn:2", "--format=hf", f"--output={out}2", base=False
  )
  assert code == 2 and f"error: the model's positions are '{kind}' already, by 4" in told


@pytest.mark.parametrize(
  ("given", "told"),
  [("ntk:2", "by linear or yarn, not 'ntk'"), ("yarn:1", "a factor of 1.0 does not stretch")],
)
def test_stretches_that_cannot_be(run, tmp_path, given, told):
  code, _, err = run(f"--stretch={given}", "--format=hf", f"--output={tmp_path / 'x'}")
  assert code == 2 and told in err


@pytest.mark.parametrize("given", ["yarn", "yarn:x"])
def test_a_stretch_without_a_factor(run, tmp_path, given):
  with pytest.raises(SystemExit):
    run(f"--stretch={given}", "--format=hf", f"--output={tmp_path / 'x'}")


LORA_NUMBERS = 2 * 2 * (4 * (32 + 32) + 3 * (32 + 64))  # of 2 layers and rank 2
PREFIX_NUMBERS = 2 * 3 * 2 * 32  # keys and values


@pytest.mark.parametrize(
  ("name", "numbers"),
  [
    ("lora", LORA_NUMBERS),
    ("run", LORA_NUMBERS),
    ("beside", LORA_NUMBERS + 288 * 32),
    ("prefix", PREFIX_NUMBERS),
  ],
)
def test_an_adapter_leaves_as_it_came(world, run, tmp_path, name, numbers):
  """Whether PEFT reads such files is asked where they are written, in tests/peft."""
  root, out = world[0], tmp_path / "out"
  of = [f"--run={root / name}"] if name == "run" else [f"--adapter={root / name}"]
  code, told, _ = run(*of, "--format=peft", f"--output={out}", base=name != "run")
  assert code == 0 and told.endswith(f"saved {out}\n")
  given = root / ("run/adapter" if name == "run" else name)
  files = {file.name: file.read_bytes() for file in out.iterdir()}
  assert files == {file.name: file.read_bytes() for file in given.iterdir()}
  total = sum(map(len, files.values()))
  assert _row(told) == ["all", f"{total:,}", f"{numbers:,}", f"{total / numbers:.3f}", "0"]


def _altered(adapters, change):
  """`adapters` whose first site is changed."""
  flat = dict(peft.sites(adapters))
  first = next(iter(flat))
  return tree.unflatten({**flat, first: change(flat[first])})


@pytest.mark.parametrize(
  ("change", "told"),
  [
    (lambda lora: lora.replace(b=lora.b.at[1, 0, 0].add(1e-6)), "k_proj/kernel/b was read back"),
    (lambda lora: lora.replace(dropout=0.5), "out was loaded with other sites or settings"),
  ],
)
def test_an_adapter_that_is_read_otherwise_leaves_nothing(
  world, run, tmp_path, monkeypatch, change, told
):
  save = peft.save
  monkeypatch.setattr(
    peft,
    "save",
    lambda to, adapters, *rest, **how: save(to, _altered(adapters, change), *rest, **how),
  )
  code, _, err = run(
    f"--adapter={world[0] / 'lora'}", "--format=peft", f"--output={tmp_path / 'out'}"
  )
  assert code == 2 and told in err and not list(tmp_path.iterdir())


def test_a_model_is_no_adapter(world, tmp_path):
  model, params, tokenizer = models.load(world[0] / "base")
  with pytest.raises(ValueError, match="peft holds adapters alone, and no model"):
    formats.export(tmp_path / "out", model, params, tokenizer, format="peft")
