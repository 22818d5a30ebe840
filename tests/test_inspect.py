"""The real command on adapters of every method, PEFT's and ours, in all kinds of folders."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft as hf_peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from research import inspect, models, peft
from research.models import families

LLAMA = {
  "model_type": "llama",
  "vocab_size": 31,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 3,
  "num_attention_heads": 2,
  "max_position_embeddings": 32,
}
KEY = jax.random.key(0)
LORA = {
  "target": "layers/(attention/q|mlp/down)_proj/kernel",
  "name": "lora",
  "rank": 4,
  "alpha": 8,
  "rank_pattern": {"layers/1/.*": 2},
}
ADALORA = {"name": "adalora", "target": "layers/attention/[qk]_proj/kernel"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """A folder with a base, `save(rule, name)`, which writes an adapter there, and its parameters."""
  root = tmp_path_factory.mktemp("inspect")
  model = models.build(LLAMA).clone(unroll=1)
  params = jax.jit(model.init)(KEY, jnp.zeros((1, 1), jnp.int32))["params"]
  models.save(root / "base", model, params, None)
  modules = families.find("llama").modules(model.config)

  def save(rule, name):
    adapters = peft.attach([rule], params, KEY)
    peft.save(root / name, adapters, modules, base_model="someone/base")
    return peft.load(root / name, params, modules)

  return root, save, params


@pytest.fixture
def run(world, capsys):
  def call(name, *flags):
    code = inspect.main([str(world[0] / name), *flags])
    return code, *capsys.readouterr()

  return call


def _records(run, name, *flags):
  code, out, err = run(name, "--json", *flags)
  assert not err
  return code, json.loads(out)


def test_a_table_of_modules(world, run):
  root, save, _ = world
  save(LORA, "lora")
  code, out, _ = run("lora")
  assert code == 0
  lines = [line.split() for line in out.splitlines()]
  assert lines[0] == [str(root / "lora")]
  assert lines[1:3] == [["method", "LORA"], ["base", "someone/base"]]
  assert "r 4" in out and "lora_alpha 8" in out and '"model.layers.1.self_attn.q_proj": 2' in out
  down = next(line for line in out.splitlines() if line.startswith("model.layers.{}.mlp.down_proj"))
  parameters = (24 + 16) * (4 + 2 + 4)
  assert " 0-2 " in down and "lora_A [2-4, 24], lora_B [16, 2-4]" in down
  assert f" {parameters}  {4 * parameters:,}  float32" in down
  assert lines[-1] == ["all", "720", "2,880"]


def test_a_whole_module_and_tokens_beside(world, run):
  root, _, params = world
  adapters = peft.attach([LORA, {"name": "trainable_tokens", "tokens": [3]}], params, KEY)
  adapters = peft.with_saved(adapters, params, ["lm_head/kernel"])
  peft.save(root / "beside", adapters, families.find("llama").modules(models.build(LLAMA).config))
  code, (found,) = _records(run, "beside", f"--model={root / 'base'}")
  assert (code, found["unplaced"], found["fits"]) == (0, [], True)
  sizes = {family["module"]: family["parameters"] for family in found["families"]}
  assert (sizes["lm_head"], sizes["model.embed_tokens"]) == (31 * 16, 16)


def _count(adapters):
  """All that is trained, without the zeros that hold ranks below their stack's."""
  total = 0
  for _, adapter in peft.sites(adapters):
    ranks = getattr(adapter, "ranks", ())
    missing = sum(max(ranks) - rank for rank in ranks)
    each = adapter.a.shape[-2] + adapter.b.shape[-1] if ranks else 0
    leaves = [getattr(adapter, f) for f in adapter.__dataclass_fields__ if adapter.trains(f)]
    total += sum(v.size for v in leaves if hasattr(v, "size")) - missing * each
  return total


METHODS = {
  "ADALORA": ({**ADALORA, "init_r": 4, "target_r": 2}, "init_r", 4),
  "TRAINABLE_TOKENS": ({"name": "trainable_tokens", "tokens": [3, 5]}, "token_indices", [3, 5]),
  "LORA": (LORA, "r", 4),
  "DORA": ({**LORA, "name": "dora"}, "lora_alpha", 8),
  "IA3": ({"target": ".*(k|v|down)_proj/kernel", "name": "ia3"}, "feedforward_modules", None),
  "PREFIX_TUNING": ({"name": "prefix", "tokens": 3}, "num_virtual_tokens", 3),
  "PROMPT_TUNING": ({"name": "prompt", "tokens": 5}, "num_virtual_tokens", 5),
  "ADAPTERHUB": ({"name": "bottleneck", "size": 4}, "non_linearity", "relu"),
  "BOTTLENECK": ({"name": "bottleneck", "size": 4, "reads": "input"}, "sites", None),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_counted_and_fits_its_base(world, run, method):
  rule, key, value = METHODS[method]
  adapters = world[1](rule, method)
  code, (found,) = _records(run, method, f"--model={world[0] / 'base'}")
  assert (code, found["method"], found["unplaced"]) == (0, method, [])
  assert found["fits"] and found["misfit"] is None
  assert value is None or found["settings"][key] == value
  expected = _count(adapters)
  if method == "ADAPTERHUB":
    assert {tuple(f["layers"]) for f in found["families"]} == {(0, 1, 2)}
  assert found["parameters"] == expected == sum(f["parameters"] for f in found["families"])
  assert found["bytes"] == 4 * expected


def test_what_peft_wrote(world, run, capsys):
  root, *_ = world
  torch.manual_seed(0)
  base = transformers.AutoModelForCausalLM.from_pretrained(root / "base")
  config = hf_peft.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"])
  theirs = hf_peft.get_peft_model(base, config, adapter_name="first")
  theirs.add_adapter("second", hf_peft.LoraConfig(r=1, target_modules=["up_proj"]))
  theirs.save_pretrained(root / "peft", save_embedding_layers=False)
  capsys.readouterr()
  code, (first, second) = _records(run, "peft")
  assert (code, first["name"], second["name"]) == (0, "first", "second")
  assert first["base"] == str(root / "base")
  families_ = {f["module"]: f for f in first["families"]}
  assert set(families_) == {"model.embed_tokens", "model.layers.{}.self_attn.q_proj"}
  assert families_["model.embed_tokens"]["layers"] == []
  assert families_["model.embed_tokens"]["shapes"]["lora_embedding_A"] == [[2, 31]]
  assert second["parameters"] == 3 * (16 + 24)


def test_a_run_and_its_adapters_by_name(world, run):
  root, save, _ = world
  save(LORA, "one/adapter")
  assert _records(run, "one")[1][0]["name"] == ""
  for name in ("math", "code"):
    save(LORA, f"several/adapter/{name}")
  code, out, _ = run("several")
  assert code == 0 and out.count("method  LORA") == 2 and "several/adapter/math\n" in out


def test_what_does_not_fit(world, run):
  root, save, _ = world
  save({"target": "embed/embedding", "name": "embedding_lora", "rank": 2}, "table")
  save(LORA, "whole")
  other = models.build({**LLAMA, "vocab_size": 33, "num_hidden_layers": 2}).clone(unroll=1)
  params = jax.jit(other.init)(KEY, jnp.zeros((1, 1), jnp.int32))["params"]
  models.save(root / "other", other, params, None)
  code, out, _ = run("table", f"--model={root / 'other'}")
  assert code == 1 and "does not fit" in out and "does not fit embed/embedding (33, 16)" in out
  code, (found,) = _records(run, "whole", f"--model={root / 'other'}")
  assert code == 1 and not found["fits"]
  assert "'model.layers.2.mlp.down_proj', the model does not" in found["misfit"]
  code, out, _ = run("whole", f"--model={root / 'base'}")
  assert code == 0 and out.endswith(f"fits {root / 'base'}\n")


def test_tensors_without_a_place(world, run):
  root, save, _ = world
  save(LORA, "more")
  file = root / "more/adapter_model.safetensors"
  save_file({**load_file(file), "lm_head.weight": np.ones((2, 2), np.float32)}, file)
  code, out, _ = run("more")
  assert code == 1 and "1 tensors have no place: lm_head.weight" in out


def test_what_is_no_adapter(world, run):
  root, save, _ = world
  (root / "empty").mkdir()
  code, _, err = run("empty")
  assert code == 2 and "holds no adapter: no adapter_config.json there or in adapter/" in err
  (root / "full/model").mkdir(parents=True)
  assert "is a run that left a whole model" in run("full")[2]
  (root / "empty/adapter_config.json").write_text("{")
  assert "adapter_config.json is no JSON" in run("empty")[2]
  (root / "empty/adapter_config.json").write_text('{"peft_type": "LORA"}')
  code, _, err = run("empty")
  assert code == 2 and "adapter_model.safetensors" in err
  with pytest.raises(SystemExit):
    inspect.main(["--help"])
