"""Directories in torchao's convention: transformers' model of them against ours, both ways."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from research import models, quant
from research.core import matrix, tree
from research.data import vocabulary
from research.io import safetensors
from research.quant.interchange import torchao as convention

with warnings.catch_warnings():
  warnings.simplefilter("ignore")
  from torchao import quantization as theirs

LLAMA = {
  "model_type": "llama",
  "vocab_size": 272,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
}
TOKENS = np.random.default_rng(0).integers(0, 262, (2, 9))
ALL = "layers/.*_proj/kernel"
LOAD = transformers.AutoModelForCausalLM.from_pretrained
NAMES = {"attention": "self_attn", "mlp": "mlp"}
WAYS = {
  "int8": (theirs.Int8WeightOnlyConfig(), {"kind": "int8"}),
  "int8 of groups": (
    theirs.Int8WeightOnlyConfig(granularity=theirs.PerGroup(16)), {"kind": "int8", "group": 16},
  ),
  "w8a8": (
    theirs.Int8DynamicActivationInt8WeightConfig(), {"kind": "int8", "activations": "int8"},
  ),
  "e4m3": (theirs.Float8WeightOnlyConfig(), {"kind": "e4m3"}),
  "e5m2 of the whole": (
    theirs.Float8WeightOnlyConfig(torch.float8_e5m2, granularity=theirs.PerTensor()),
    {"kind": "e5m2", "group": -1},
  ),
}  # fmt: skip


@pytest.fixture(scope="module")
def world():
  """A llama, its random parameters, and a tokenizer."""
  model = models.build(LLAMA).clone(unroll=1)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(TOKENS))["params"]
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), shapes)
  tokenizer = vocabulary.train(["the theme of them all"] * 4, size=262, kind="bpe", sentinels=2)
  return model, params, tokenizer


def _weight(model, path, layer):
  """The weight of a transformers model at our path."""
  _, part, module, _ = path.split("/")
  return getattr(getattr(model.model.layers[layer], NAMES[part]), module).weight


def _logits(model):
  with torch.no_grad():
    return model(torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.parametrize("way", WAYS)
def test_torchao_makes_our_numbers_of_our_files(world, tmp_path, way):
  model, params, tokenizer = world
  params = matrix.flatten(params)
  kernel = params["layers/mlp/up_proj/kernel"]
  params["layers/mlp/up_proj/kernel"] = kernel.at[:, :, 3].set(0)  # an output of zeros
  rule = {"target": ALL, **WAYS[way][1]}
  held = quant.quantize(tree.unflatten(params), (rule,))
  out = tmp_path / "out"
  models.export(out, model, held, tokenizer, format="torchao", type="float32")
  other = LOAD(out, dtype=torch.float32)
  for path, leaf in matrix.flatten(held).items():
    if isinstance(leaf, quant.QArray):
      for layer in range(2):
        weight = _weight(other, path, layer)
        is_int = leaf.scheme.kind == "int8"
        assert type(weight).__name__ == ("Int8Tensor" if is_int else "Float8Tensor")
        np.testing.assert_array_equal(weight.dequantize().T, leaf.astype(jnp.float32)[layer])
  assert type(other.lm_head.weight).__name__ == "Parameter"
  if way not in ("w8a8", "e4m3"):
    return
  ours = jax.jit(model.apply)({"params": held}, TOKENS)
  # Their products of integers have other scales of activations.
  slack = 0.02 if way == "w8a8" else 1e-4
  np.testing.assert_allclose(ours, _logits(other), atol=slack * np.abs(ours).max())


@pytest.mark.parametrize("way", WAYS)
def test_what_transformers_writes_by_torchao_is_read(world, tmp_path, way):
  """Codes and scales are those that we make of the same model."""
  model, params, tokenizer = world
  config, scheme = WAYS[way]
  models.save(tmp_path / "dense", model, params, tokenizer)
  how = transformers.TorchAoConfig(config)
  LOAD(tmp_path / "dense", quantization_config=how, dtype=torch.float32).save_pretrained(
    tmp_path / "out"
  )
  _, found, _ = models.load(tmp_path / "out")
  meant = quant.quantize(params, ({"target": ALL, **scheme},))
  for (path, leaf), other in zip(
    matrix.flatten(meant).items(), matrix.flatten(found).values(), strict=True
  ):
    if isinstance(leaf, quant.QArray):
      assert other.scheme == leaf.scheme, path
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(other), jax.tree.leaves(leaf))


def test_shards_have_all_of_the_header(world, tmp_path):
  del world
  weights = {"a._weight_qdata": np.ones((4, 8), np.int8), "b.weight": np.ones(3, np.float32)}
  weights["a._weight_scale"] = np.ones((4, 1), np.float32)
  settings = {"quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}
  header = convention.header(weights, settings, "float32")
  safetensors.write_sharded(tmp_path, weights, 20, header)
  files = sorted(tmp_path.glob("*.safetensors"))
  assert len(files) == 3
  for file in files:
    assert safetensors.metadata(file) == {"format": "pt", **header}


@pytest.mark.parametrize(
  ("how", "told"),
  [
    ({"kind": "int4", "group": 16}, "torchao's files hold symmetric int8, e4m3 or e5m2, not int4"),
    ({"kind": "int8", "symmetric": False}, "not int8 .*with zero points.*'native'"),
    ({"kind": "e4m3", "scales": "bfloat16"}, "torchao holds them in float32"),
    ({"kind": "int8", "activations": "int8", "outliers": 2}, "no place for outliers"),
  ],
)
def test_what_it_cannot_hold_is_told(world, tmp_path, how, told):
  model, params, tokenizer = world
  held = quant.quantize(params, ({"target": ALL, **how},))
  with pytest.raises(ValueError, match=told) as raised:
    models.export(tmp_path / "out", model, held, tokenizer, format="torchao")
  assert "\n" not in str(raised.value)


CODES = np.ones((4, 8), np.int8)
SCALE = np.ones((4, 1), np.float32)


@pytest.mark.parametrize(
  ("changed", "way", "told"),
  [
    ({}, "Int4WeightOnlyConfig", "torchao's Int4WeightOnlyConfig is not read"),
    ({"_weight_scale": None}, "Int8WeightOnlyConfig", "has no _weight_scale"),
    ({"_weight_qdata": CODES.astype(np.uint8)}, "Int8WeightOnlyConfig", "not uint8"),
    ({"_weight_scale": SCALE[:2]}, "Int8WeightOnlyConfig", "of rows, of groups"),
    ({"_weight_zero_point": SCALE.astype(np.int8)}, "Int8WeightOnlyConfig", "zero points are not"),
  ],
)
def test_what_is_not_read_is_told(changed, way, told):
  tensors = {"_weight_qdata": CODES, "_weight_scale": SCALE, **changed}
  tensors = {name: part for name, part in tensors.items() if part is not None}
  with pytest.raises(ValueError, match=told):
    convention.decode(tensors, {"quant_type": {"default": {"_type": way}}})
