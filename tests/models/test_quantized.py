"""Whole directories in few bits: what other tools read, what comes back, and what cannot be."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from research import models, quant
from research.core import matrix
from research.data import vocabulary
from research.io import safetensors

LLAMA = {
  "model_type": "llama",
  "vocab_size": 288,
  "hidden_size": 64,
  "intermediate_size": 96,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 262, (2, 9)), jnp.int32)
ALL = "layers/.*_proj/kernel"
INT4 = {"target": ALL, "kind": "int4", "group": 32, "scales": "float16"}
RULES = {
  "gptq": ({**INT4, "kind": "int3"},),
  "awq": ({**INT4, "symmetric": False},),
  "bitsandbytes": ({"target": ALL, "kind": "nf4", "group": 32, "scales": "double"},),
  "torchao": ({"target": ALL, "kind": "int8", "activations": "int8"},),
  "native": (
    {"target": "layers/attention/.*/kernel", "kind": "e4m3", "scales": "bfloat16"},
    {"target": ALL, "kind": "int2", "group": 16, "symmetric": False},
    {"target": "lm_head/kernel", "kind": "fp4", "group": 16, "scales": "double"},
    {"target": "embed/embedding", "kind": "int8"},
  ),
}


@pytest.fixture(scope="module")
def world():
  """A llama, its random parameters, and a tokenizer."""
  model = models.build(LLAMA).clone(unroll=1)
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), jnp.float32), shapes)
  tokenizer = vocabulary.train(["the theme of them all"] * 4, size=262, kind="bpe", sentinels=2)
  return model, params, tokenizer


def _bits(leaf):
  return [np.asarray(part) for part in jax.tree.leaves(leaf)]


@pytest.mark.parametrize("form", RULES)
def test_what_is_written_comes_back_to_the_bit(world, tmp_path, form):
  model, params, tokenizer = world
  held = quant.quantize(params, RULES[form])
  out = tmp_path / "out"
  told = models.export(out, model, held, tokenizer, format=form)
  _, found, _ = models.load(out)
  others = matrix.flatten(found)
  for path, leaf in matrix.flatten(held).items():
    if isinstance(leaf, quant.QArray):
      assert others[path].scheme == leaf.scheme and others[path].dtype == jnp.float32
      jax.tree.map(np.testing.assert_array_equal, _bits(others[path]), _bits(leaf))
  dense = {path: leaf for path, leaf in others.items() if not isinstance(leaf, quant.QArray)}
  kind = jnp.bfloat16 if form in ("bitsandbytes", "torchao") else jnp.float16
  kind = jnp.float32 if form == "native" else kind
  for path, leaf in dense.items():
    meant = matrix.flatten(params)[path].astype(kind).astype(jnp.float32)
    np.testing.assert_array_equal(leaf, meant)
  assert told.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
  settings = json.loads((out / "config.json").read_text())["quantization_config"]
  assert settings["quant_method"] == {"native": "research"}.get(form, form)


def test_what_is_loaded_in_bfloat16_stands_for_that(world, tmp_path):
  model, params, tokenizer = world
  held = quant.quantize(params, RULES["gptq"])
  models.export(tmp_path / "out", model, held, tokenizer, format="gptq")
  _, found, _ = models.load(tmp_path / "out", dtype=jnp.bfloat16)
  for leaf in matrix.flatten(found).values():
    assert leaf.dtype == jnp.bfloat16


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("scales", ["float32", "double"])
def test_transformers_computes_our_logits_of_bitsandbytes_files(world, tmp_path, scales, left):
  pytest.importorskip("bitsandbytes")
  model, params, tokenizer = world
  rules = ({"target": ALL, "kind": "nf4", "group": 64 if left else 32, "scales": scales},)
  if left:  # A projection of 96 inputs has no blocks of 64.
    rules = ({"target": ".*/(down|k)_proj/kernel", "kind": "none"}, *rules)
  held = quant.quantize(params, rules)
  out = tmp_path / "out"
  models.export(out, model, held, tokenizer, format="bitsandbytes", type="float32")
  theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
  linear = theirs.model.layers[1].mlp
  assert type(linear.up_proj).__name__ == "Linear4bit"
  assert type(linear.down_proj).__name__ == ("Linear" if left else "Linear4bit")
  assert type(theirs.lm_head).__name__ == "Linear"
  theirs.train()  # otherwise CPUs that have a product in bfloat16 use it
  with torch.no_grad():
    logits = theirs(torch.tensor(np.asarray(TOKENS))).logits.numpy()
  _, found, _ = models.load(out)
  ours = jax.jit(model.apply)({"params": quant.dequantize(found)}, TOKENS)
  np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-4)
  assert np.abs(logits - np.asarray(jax.jit(model.apply)({"params": params}, TOKENS))).max() > 1e-2


@pytest.mark.parametrize("layer", [False, True])
def test_what_transformers_writes_by_bitsandbytes_is_read(world, tmp_path, layer):
  """layer: whether a projection of a single layer is left as it is."""
  pytest.importorskip("bitsandbytes")
  model, params, tokenizer = world
  models.save(tmp_path / "dense", model, params, tokenizer)
  how = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
  of = transformers.AutoModelForCausalLM.from_pretrained
  # Theirs has blocks of 64 alone, and down's 96 inputs are no whole ones.
  how.llm_int8_skip_modules = ["down_proj", "lm_head"]
  how.llm_int8_skip_modules += ["model.layers.1.self_attn.o_proj"] if layer else []
  of(tmp_path / "dense", dtype=torch.float32, quantization_config=how).save_pretrained(
    tmp_path / "out"
  )
  _, found, _ = models.load(tmp_path / "out")
  rules = (
    {"target": ".*/down_proj/kernel", "kind": "none"},
    {"target": ALL, "kind": "nf4", "group": 64},
  )
  rules = ({"target": "layers/1/.*/o_proj/.*", "kind": "none"}, *rules) if layer else rules
  meant = matrix.flatten(quant.quantize(params, rules))
  assert sum(isinstance(leaf, quant.Mixed) for leaf in meant.values()) == layer
  for path, leaf in matrix.flatten(found).items():
    assert type(leaf) is type(meant[path]), path
    jax.tree.map(np.testing.assert_array_equal, _bits(leaf), _bits(meant[path]))


BERT = {
  "model_type": "bert",
  "vocab_size": 288,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "max_position_embeddings": 16,
}
ENCODERS = {
  "bare": ({**BERT, "architectures": ["BertModel"]}, "AutoModel"),
  "masked": ({**BERT, "architectures": ["BertForMaskedLM"]}, "AutoModelForMaskedLM"),
  "classifier": (
    {**BERT, "architectures": ["BertForSequenceClassification"]},
    "AutoModelForSequenceClassification",
  ),
}


def _drawn(model):
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
  rng = np.random.default_rng(2)
  return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), jnp.float32), shapes)


def _in_four_bits(model):
  """The names of linear modules of a transformers model that are in four bits, and of the rest."""
  found = {True: set(), False: set()}
  for name, module in model.named_modules():
    if isinstance(module, torch.nn.Linear):
      found[type(module).__name__ == "Linear4bit"].add(name)
  return found[True], found[False]


@pytest.mark.parametrize("case", ENCODERS)
def test_what_no_layer_has_is_left_to_transformers_as_it_is(world, tmp_path, case):
  """Poolers and heads, tied ones too; against the same numbers as a plain directory."""
  pytest.importorskip("bitsandbytes")
  shape, kind = ENCODERS[case]
  model = models.build(shape)
  held = quant.quantize(_drawn(model), ({"target": ALL, "kind": "nf4", "group": 32},))
  models.export(tmp_path / "out", model, held, world[2], format="bitsandbytes", type="float32")
  models.export(tmp_path / "plain", model, held, world[2], format="hf")
  of = getattr(transformers, kind).from_pretrained
  few, plain = (of(tmp_path / name, dtype=torch.float32).train() for name in ("out", "plain"))
  inside, outside = _in_four_bits(few)
  assert len(inside) == 6 and all(".layer.0." in f".{name}" for name in inside)
  assert outside
  tokens = torch.tensor(np.asarray(TOKENS))
  for dropout in (m for each in (few, plain) for m in each.modules()):
    if isinstance(dropout, torch.nn.Dropout):
      dropout.p = 0.0
  with torch.no_grad():
    for one, other in zip(few(tokens).values(), plain(tokens).values(), strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["bitsandbytes", "gptq"])
def test_a_score_is_written_beside_what_is_in_few_bits(world, tmp_path, form):
  """And transformers reads it, where the tool is here."""
  plain, params, tokenizer = world
  model = plain.clone(config=dataclasses.replace(plain.config, head="score"))
  kernel = np.random.default_rng(3).integers(-8, 8, (64, 1)).astype(np.float32)
  params = {name: part for name, part in params.items() if name != "lm_head"}
  params["score"] = {"kernel": jnp.asarray(kernel)}
  held = quant.quantize(params, RULES[form])
  out = tmp_path / "out"
  models.export(out, model, held, tokenizer, format=form)
  found, others, _ = models.load(out)
  assert found.config.head == "score"
  np.testing.assert_array_equal(others["score"]["kernel"], kernel)
  if form != "bitsandbytes":
    return
  theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32)
  inside, outside = _in_four_bits(theirs)
  assert outside == {"score"} and len(inside) == 14
  np.testing.assert_array_equal(theirs.score.weight.detach().float().T, kernel)


CONFIGS = {"gptq": transformers.GPTQConfig, "awq": transformers.AwqConfig}


@pytest.mark.parametrize("form", CONFIGS)
def test_transformers_takes_the_settings(world, tmp_path, form):
  model, params, tokenizer = world
  held = quant.quantize(params, RULES[form])
  models.export(tmp_path / "out", model, held, tokenizer, format=form)
  config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
  found, unused = CONFIGS[form].from_dict(config.quantization_config, return_unused_kwargs=True)
  assert not unused
  assert (found.bits, found.group_size) == ({"gptq": 3, "awq": 4}[form], 32)
  if form == "gptq":
    assert found.sym and not found.desc_act and found.format == "gptq"
    assert found.modules_in_block_to_quantize is None
  else:
    assert found.zero_point and found.format == "gemm"
  assert config.dtype == torch.float16


def _edit(directory, tensors=lambda tensors: tensors, settings=lambda settings: settings):
  """Changes what a directory holds."""
  found = tensors({name: np.array(part) for name, part in safetensors.read(directory).items()})
  safetensors.write_sharded(directory, found)
  file = directory / "config.json"
  config = json.loads(file.read_text())
  config["quantization_config"] = settings(config["quantization_config"])
  file.write_text(json.dumps(config))


@pytest.fixture(scope="module")
def directory(world, tmp_path_factory):
  """Of GPTQ."""
  model, params, tokenizer = world
  out = tmp_path_factory.mktemp("gptq") / "out"
  models.export(out, model, quant.quantize(params, RULES["gptq"]), tokenizer, format="gptq")
  return out


def _copy(directory, tmp_path):
  for file in directory.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  return tmp_path


def test_files_of_older_tools_are_read(directory, tmp_path):
  """Without the groups of inputs, with biases of zeros that the model has not."""
  _copy(directory, tmp_path)
  name = "model.layers.{}.mlp.up_proj"

  def older(tensors):
    zeros = {f"{name.format(i)}.bias": np.zeros(96, np.float16) for i in range(2)}
    return {key: part for key, part in tensors.items() if "g_idx" not in key} | zeros

  _edit(tmp_path, older)
  found, meant = (models.load(path)[1] for path in (tmp_path, directory))
  jax.tree.map(np.testing.assert_array_equal, found, meant)


Q = "model.layers.0.self_attn.q_proj"
BROKEN = {
  "method": ({}, {"quant_method": "gptqq"}, "quant_method 'gptqq' is unknown.*did you mean 'gptq'"),
  "bits of 8": ({}, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "8 bits is not read"),
  "other": ({}, {"quant_method": "bitsandbytes"}, "has no weight.absmax of a projection"),
  "layer": ({f"{Q}.qweight": None}, {}, f"{Q} is in more bits than"),
  "dense": (
    {f"{Q}.qweight": None, f"{Q}.weight": np.ones((64, 32))},
    {},
    "'layers/attention/q_proj/kernel' has layers of several shapes",
  ),
  "part": ({f"{Q}.scales": None}, {}, "a projection of GPTQ has no scales"),
  "bias": ({f"{Q}.bias": np.ones(64, np.float16)}, {}, f"1 tensors left over: {Q}.bias"),
  "shape": (
    {f"model.layers.{i}.self_attn.q_proj.{name}": None for i in range(2) for name in ("qzeros",)},
    {},
    "has no qzeros",
  ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_directory_is_told(directory, tmp_path, case):
  tensors, settings, message = BROKEN[case]
  _copy(directory, tmp_path)

  def changed(found):
    return {name: part for name, part in {**found, **tensors}.items() if part is not None}

  _edit(tmp_path, changed, lambda found: {**found, **settings})
  with pytest.raises(ValueError, match=message) as error:
    models.load(tmp_path)
  assert "\n" not in str(error.value)


MIXED = (
  {"target": "layers/0/attention/.*", "kind": "none"},
  {**INT4, "target": "layers/1/.*"},
  {"target": ALL, "kind": "nf4", "group": 32, "scales": "double"},
)


def test_layers_that_differ_come_back_to_the_bit(world, tmp_path):
  """In the native format; arrays among them have the type that was asked for."""
  model, params, tokenizer = world
  held = quant.quantize(params, MIXED)
  models.export(tmp_path / "out", model, held, tokenizer, format="native", type="bfloat16")
  model, found, _ = models.load(tmp_path / "out", dtype=jnp.bfloat16)
  others = matrix.flatten(found)
  for path, leaf in matrix.flatten(held).items():
    assert isinstance(others[path], quant.Mixed) == isinstance(leaf, quant.Mixed)
    if not isinstance(leaf, quant.Mixed):
      np.testing.assert_array_equal(others[path], leaf.astype(jnp.bfloat16))
      continue
    assert others[path].schemes == leaf.schemes
    for one, other in zip(leaf.each, others[path].each, strict=True):
      assert other.dtype == jnp.bfloat16
      one = one if isinstance(one, quant.QArray) else one.astype(jnp.bfloat16)
      jax.tree.map(np.testing.assert_array_equal, _bits(other), _bits(one))
  assert sum(isinstance(leaf, quant.Mixed) for leaf in others.values()) == 7
  assert np.isfinite(jax.jit(model.apply)({"params": found}, TOKENS)).all()


WRONG = {
  "nothing": ("gptq", (), "nothing is held in few bits"),
  "table": ("gptq", ({**INT4, "target": "embed/embedding"},), "'embed/embedding': gptq holds"),
  "head": ("awq", ({**INT4, "target": "lm_head/kernel"},), "'lm_head/kernel': awq holds"),
  "mixture": (
    "gptq",
    ({**INT4, "target": "layers/mlp/.*", "kind": "int8"}, INT4),
    "'layers/attention/.*' is held as int4 .*, 'layers/mlp/.*' as int8 .*format 'native'",
  ),
  "layers": ("bitsandbytes", MIXED, "'layers/attention/.*' is held in another way in some layers"),
  "scheme": ("bitsandbytes", (INT4,), "bitsandbytes' files hold nf4 or fp4, not int4"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_format_cannot_hold(world, tmp_path, case):
  model, params, tokenizer = world
  form, rules, message = WRONG[case]
  held = quant.quantize(params, rules)
  with pytest.raises(ValueError, match=message) as error:
    models.export(tmp_path / "out", model, held, tokenizer, format=form)
  assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


MOE = {**LLAMA, "model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}
GPT2 = {
  "model_type": "gpt2",
  "vocab_size": 288,
  "n_embd": 32,
  "n_layer": 1,
  "n_head": 2,
  "n_positions": 16,
}


@pytest.mark.parametrize(
  ("shape", "message"),
  [(MOE, "gptq has no place for experts"), (GPT2, "is no linear module of its own .transformer.h")],
)
def test_fused_projections_and_experts_are_for_the_native_format(world, tmp_path, shape, message):
  model, tokenizer = models.build(shape).clone(unroll=1), world[2]
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
  rng = np.random.default_rng(2)
  params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)
  held = quant.quantize(params, ({**INT4, "target": "layers/.*_proj/kernel"},))
  with pytest.raises(ValueError, match=message):
    models.export(tmp_path / "gptq", model, held, tokenizer, format="gptq")
  models.export(tmp_path / "native", model, held, tokenizer, format="native")
  _, found, _ = models.load(tmp_path / "native")
  jax.tree.map(np.testing.assert_array_equal, found, held)


def test_numbers_that_float16_has_not(world, tmp_path):
  model, params, tokenizer = world
  held = quant.quantize(params, RULES["gptq"])
  held["final_norm"]["scale"] = held["final_norm"]["scale"] * 1e6
  with pytest.raises(ValueError, match="'final_norm/scale' has numbers beyond float16; .*bfloat16"):
    models.export(tmp_path / "out", model, held, tokenizer, format="gptq")


def test_other_formats_get_the_numbers(world, tmp_path):
  model, params, tokenizer = world
  held = quant.quantize(params, RULES["native"])
  models.export(tmp_path / "hf", model, held, tokenizer, format="hf")
  _, found, _ = models.load(tmp_path / "hf")
  jax.tree.map(np.testing.assert_array_equal, found, quant.dequantize(held))
