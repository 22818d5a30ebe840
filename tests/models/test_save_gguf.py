"""GGUF files that we write, read by `transformers` and by ourselves; nothing is compiled."""

import dataclasses

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from research import models
from research.core import tree
from research.data import vocabulary
from research.io import gguf as reader
from research.models import agreement
from research.models.families import llama
from research.models.families.weights import Weight
from research.nn.positions import Rope

SHAPE = {
  "vocab_size": 320,
  "hidden_size": 64,
  "intermediate_size": 96,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "rms_norm_eps": 1e-5,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
YARN = {
  "rope_type": "yarn",
  "rope_theta": 1e6,
  "factor": 4.0,
  "original_max_position_embeddings": 16,
}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 5e5,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}
CAPS = {"attn_logit_softcapping": 4.1, "final_logit_softcapping": 6.0}
GEMMA = {"head_dim": 32, "sliding_window": 5, "query_pre_attn_scalar": 32}
FAMILIES = {
  "llama": {"model_type": "llama"},
  "llama3": {"model_type": "llama", "head_dim": 64, "rope_parameters": LLAMA3},
  "qwen2": {"model_type": "qwen2", "rope_parameters": YARN},
  # transformers takes a qwen3's heads for 128 wide, whatever the file says.
  "qwen3": {"model_type": "qwen3", "head_dim": 128, "tie_word_embeddings": True},
  "gemma2": {"model_type": "gemma2", **GEMMA, **CAPS},
  "gemma3": {
    "model_type": "gemma3_text",
    **GEMMA,
    "num_hidden_layers": 7,
    "rope_parameters": {
      "full_attention": LINEAR,
      "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
  },
}


@pytest.fixture(scope="module")
def tokenizer():
  return vocabulary.train(["the theme of them all, then"] * 4, size=270, kind="bpe", sentinels=3)


def _model(**changes):
  """A model and random parameters in bfloat16, whose norms are exact with 1 added."""
  model = models.build(SHAPE | changes)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: jnp.asarray(rng.integers(-64, 64, leaf.shape) / 128, jnp.bfloat16), shapes
  )
  return model, params


def _equal(found, meant):
  found, meant = tree.flatten(found), tree.flatten(meant)
  assert set(found) == set(meant)
  for path, leaf in meant.items():
    np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(leaf, np.float32), path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_there_and_back_is_exact(tmp_path, tokenizer, family, kind):
  model, params = _model(**FAMILIES[family])
  models.save_gguf(tmp_path / "x.gguf", model, params, tokenizer, kind)
  other, found, other_tokenizer = models.load(tmp_path / "x.gguf")
  _equal(found, params)
  assert agreement.config_differences(other.config, model.config) == []
  assert list(agreement.tokenizer_differences(other_tokenizer, tokenizer)) == []


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llama3"])
def test_transformers_reads_the_same_model_as_from_its_own_format(tmp_path, tokenizer, family):
  """Except llama3's rotation, which it does not read from GGUF files."""
  model, params = _model(**FAMILIES[family])
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
  models.save(tmp_path / "hf", model, params, tokenizer)
  models.save_gguf(tmp_path / "x.gguf", model, params, tokenizer, "F32")
  read = transformers.AutoModelForCausalLM.from_pretrained
  meant = read(tmp_path / "hf", dtype=torch.float32)
  found = read(tmp_path, gguf_file="x.gguf", dtype=torch.float32)
  weights = found.state_dict()
  assert set(weights) == set(meant.state_dict())
  for name, value in meant.state_dict().items():
    torch.testing.assert_close(weights[name], value, rtol=0, atol=0, msg=name)
  sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
  for name in (*sizes, "num_hidden_layers", "max_position_embeddings", "vocab_size"):
    assert getattr(found.config, name) == getattr(meant.config, name), name
  assert found.config.rms_norm_eps == pytest.approx(1e-5, rel=1e-6)


def test_the_frequencies_of_llama3(tmp_path, tokenizer):
  model, params = _model(**FAMILIES["llama3"])
  models.save_gguf(tmp_path / "x.gguf", model, params, tokenizer)
  kind, _ = reader.read(tmp_path / "x.gguf").tensors.stored("rope_freqs.weight")
  assert kind == "F32"
  expected = []
  for i in range(32):
    wave = 2 * np.pi * 5e5 ** (i / 32)
    smooth = (8192 / wave - 1) / 3
    expected.append(1 / ((1 - smooth) / 8 + smooth) if 0 < smooth < 1 else 1 if smooth >= 1 else 8)
  assert len(set(np.round(expected, 3))) > 4  # kept, stretched, and some between
  found = reader.read(tmp_path / "x.gguf").tensors["rope_freqs.weight"]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_types_of_tensors(tmp_path, tokenizer, tied):
  model, params = _model(model_type="qwen2", tie_word_embeddings=tied)
  models.save_gguf(tmp_path / "x.gguf", model, params, tokenizer, "Q4_0")
  found = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
  assert found["blk.2.ffn_down.weight"] == found["blk.0.attn_q.weight"] == "Q4_0"
  assert found["blk.0.attn_norm.weight"] == found["blk.1.attn_q.bias"] == "F32"
  assert found["token_embd.weight"] == ("Q8_0" if tied else "Q4_0")
  assert found.get("output.weight") == (None if tied else "Q8_0")
  metadata = reader.read(tmp_path / "x.gguf").metadata
  assert metadata["general.file_type"] == 2 and metadata["general.name"] == "x"
  assert metadata["general.quantization_version"] == 2


def test_conventions_are_undone_to_the_bit():
  rng = np.random.default_rng(0)
  ours = rng.standard_normal((6, 24)).astype(np.float32)
  weight = Weight("path", "name", transposed=True, heads=3)
  stored = weight.write([ours])
  np.testing.assert_array_equal(weight.read(stored), ours)
  # The halves of a head of 8 become neighbours.
  np.testing.assert_array_equal(stored[:8], ours.T[[0, 4, 1, 5, 2, 6, 3, 7]])
  scale = Weight("path", "name", offset=1.0)
  stored = rng.uniform(0.5, 8, 1000).astype(np.float32)  # where a difference to 1 is exact
  np.testing.assert_array_equal(scale.write([scale.read(stored)]), stored)


REFUSED = {
  "window": ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 5}
             | {"max_window_layers": 1}, r"windows \(\), not \(0, 5, 5\)"),
  "mistral": ({"model_type": "mistral"}, "are of llama, qwen2, .*, and not of a mistral"),
  "part": ({"model_type": "llama", "partial_rotary_factor": 0.5}, "rope .*, not .*0.5"),
  "dynamic": ({"model_type": "llama", "rope_parameters": {**YARN, "rope_type": "dynamic"}},
              "rope .*'default'.*, not .*'dynamic'"),
  "other llama3": ({"model_type": "llama", "rope_parameters": {**LLAMA3, "high_freq_factor": 2.0}},
                   "is not Llama 3's of factor 8"),
  "scale": ({"model_type": "gemma2", **GEMMA, **CAPS, "query_pre_attn_scalar": 16},
            "attention_scale 0.17.*, not 0.25: it has no place"),
  "activation": ({"model_type": "llama", "hidden_act": "gelu"}, "activation silu, not gelu"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place(tmp_path, tokenizer, case):
  changes, message = REFUSED[case]
  model, params = _model(**changes)
  with pytest.raises(ValueError, match=message) as caught:
    models.save_gguf(tmp_path / "x.gguf", model, params, tokenizer)
  assert "\n" not in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_rows_that_blocks_do_not_divide(tmp_path, tokenizer):
  model, params = _model(model_type="llama", intermediate_size=80)
  with pytest.raises(ValueError, match="'blk.0.ffn_down.weight' has rows of 80, .*F16"):
    models.save_gguf(tmp_path / "x.gguf", model, params, tokenizer)
  models.save_gguf(tmp_path / "x.gguf", model, params, tokenizer, "F16")


def test_parameters_without_a_tensor(tmp_path, tokenizer):
  model, params = _model(model_type="llama")
  with pytest.raises(ValueError, match="a llama have no tensor for 'layers/new/scale'"):
    models.save_gguf(
      tmp_path / "x.gguf", model, params | {"layers": {"new": {"scale": jnp.ones(3)}}}, tokenizer
    )


def test_scalings_of_rotation_in_metadata():
  for turn in (
    Rope(theta=1e6, original_max_positions=64),
    Rope(kind="linear", factor=2.3, original_max_positions=64),
    Rope(kind="yarn", factor=4.0, original_max_positions=16, magnitude=0.1 * np.log(4) + 1),
  ):
    config = dataclasses.replace(models.build({"model_type": "llama", **SHAPE}).config, rope=turn)
    stored = {
      key: float(np.float32(value)) if isinstance(value, float) else value
      for key, value in llama.gguf_metadata(config).items()
    }
    assert llama.gguf_config(stored, {"output.weight": None}) == config
  with pytest.raises(ValueError, match="rope scaling 'longrope' is not supported; known: none"):
    llama.gguf_config(stored | {"llama.rope.scaling.type": "longrope"}, {})
