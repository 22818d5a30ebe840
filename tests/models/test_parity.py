"""Our models against `transformers`, float32, tiny and random; and SmolLM2 itself."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from research import models
from research.io import safetensors

LENGTH = 24


def _tiny(family, **changes):
  shape = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,  # whose embedding would get no gradient
  }
  config = getattr(transformers, f"{family}Config")(**shape | changes)
  config._attn_implementation = "eager"  # the only one that knows soft caps
  return getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config)


def _llama(**changes):
  return _tiny("Llama", **changes)


def _gpt2():
  config = transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=64)
  return transformers.GPT2LMHeadModel(config)


LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500.0,
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
}
YARN = {
  "rope_type": "yarn",
  "rope_theta": 500.0,
  "factor": 4.0,
  "original_max_position_embeddings": 16,
}
LONGROPE = {
  "rope_type": "longrope",
  "rope_theta": 500.0,
  "partial_rotary_factor": 0.75,
  "short_factor": [1.0, 1.5, 2.0],
  "long_factor": [1.5, 3.0, 9.0],
}
MAKERS = {
  "llama": _llama,
  "llama-tied-bias": lambda: _llama(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
  "llama3-rope": lambda: _llama(rope_parameters=LLAMA3),
  "llama-linear-rope": lambda: _llama(
    rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
  ),
  "gpt2": _gpt2,
  "mistral": lambda: _tiny("Mistral", sliding_window=5),
  "qwen2": lambda: _tiny(
    "Qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=2, rope_parameters=YARN
  ),
  "qwen3": lambda: _tiny("Qwen3", head_dim=12, tie_word_embeddings=True),
  "gemma2": lambda: _tiny(
    "Gemma2",
    head_dim=12,
    sliding_window=5,
    query_pre_attn_scalar=10,
    attn_logit_softcapping=4.0,
    final_logit_softcapping=6.0,
  ),
  "gemma3": lambda: _tiny(
    "Gemma3Text",
    head_dim=12,
    sliding_window=5,
    query_pre_attn_scalar=10,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    rope_parameters={
      "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
      "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
  ),
  "mixtral": lambda: _tiny("Mixtral", num_local_experts=4, sliding_window=5),
  "qwen3_moe": lambda: _tiny(
    "Qwen3Moe", head_dim=12, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=20
  ),
  "olmo2": lambda: _tiny("Olmo2"),
  "phi3": lambda: _tiny(
    "Phi3",
    sliding_window=16,
    original_max_position_embeddings=4,  # every document is longer
    rope_parameters=LONGROPE,
  ),
}


@pytest.fixture(scope="module", params=MAKERS)
def pair(request, tmp_path_factory):
  torch.manual_seed(0)
  theirs = MAKERS[request.param]().eval()
  for parameter in theirs.parameters():  # the default init would hide most of what can go wrong
    torch.nn.init.normal_(parameter, std=0.2)
  directory = tmp_path_factory.mktemp(request.param)
  theirs.save_pretrained(directory)
  model, params, tokenizer = models.load(directory)
  assert tokenizer is None
  apply = jax.jit(model.apply)
  return theirs, model, params, apply, directory


def _tokens(rows=2, seed=0):
  return np.random.default_rng(seed).integers(0, 97, (rows, LENGTH)).astype(np.int32)


def _reference(theirs, tokens, mask=None):
  with torch.no_grad():
    mask = None if mask is None else torch.tensor(mask)
    return theirs(torch.tensor(tokens.astype(np.int64)), attention_mask=mask).logits.numpy()


def test_logits_agree(pair):
  theirs, _, params, apply, _ = pair
  tokens = _tokens()
  ours = apply({"params": params}, tokens)
  np.testing.assert_allclose(ours, _reference(theirs, tokens), atol=1e-4)


def test_padding_changes_nothing(pair):
  theirs, _, params, apply, _ = pair
  tokens = _tokens()
  real = np.ones_like(tokens)
  real[1, 17:] = 0
  positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
  ours = apply({"params": params}, tokens, positions, real)
  theirs = _reference(theirs, tokens, real)
  np.testing.assert_allclose(ours[real == 1], theirs[real == 1], atol=1e-4)


def test_packed_documents_do_not_see_each_other(pair):
  theirs, _, params, apply, _ = pair
  tokens = _tokens(rows=1)
  lengths = [7, 12, 5]
  segments = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)])[None]
  positions = np.concatenate([np.arange(n) for n in lengths])[None]
  ours = apply({"params": params}, tokens, positions.astype(np.int32), segments.astype(np.int32))
  start = 0
  for n in lengths:
    alone = _reference(theirs, tokens[:, start : start + n])
    np.testing.assert_allclose(ours[:, start : start + n], alone, atol=1e-4)
    start += n


def test_token_by_token_through_the_cache(pair):
  theirs, model, params, _, _ = pair
  tokens = _tokens()
  step = jax.jit(lambda t, c: model.apply({"params": params}, t, cache=c))
  cache = model.init_cache(2, LENGTH + 3)
  # Long-rope turns by the tokens so far: those before it takes effect come all at once.
  first = 5 if theirs.config.model_type == "phi3" else 1
  logits = []
  for i in (0, *range(first, LENGTH)):
    out, cache = step(tokens[:, i : i + 1 if i else first], cache)
    logits.append(out)
  assert int(cache.used) == LENGTH
  ours = np.concatenate(logits, axis=1)
  np.testing.assert_allclose(ours, _reference(theirs, tokens), atol=1e-4)


def test_left_padding_in_the_cache(pair):
  theirs, model, params, _, _ = pair
  tokens = _tokens(rows=1)
  positions = np.concatenate([np.full(5, -1), np.arange(LENGTH)])[None].astype(np.int32)
  padded = np.concatenate([np.zeros((1, 5), np.int32), tokens], axis=1)
  cache = model.init_cache(1, LENGTH + 5)
  ours, _ = model.apply({"params": params}, padded, positions, cache=cache)
  np.testing.assert_allclose(ours[:, 5:], _reference(theirs, tokens), atol=1e-4)


def _gradients(model, params):
  loss = lambda p: jnp.mean(model.apply({"params": p}, _tokens()) ** 2)  # noqa: E731
  return jax.jit(jax.grad(loss))(params)


@pytest.fixture(scope="module")
def gradients(pair):
  _, model, params, _, _ = pair
  return _gradients(model, params)


def test_rolled_and_rematerialized_are_the_same(pair, gradients):
  _, model, params, _, _ = pair
  other = _gradients(model.clone(unroll=1, remat="products"), params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), gradients, other
  )


def test_gradients_agree(pair, gradients):
  """The hand-written derivatives of norm, attention, SwiGLU and products against torch's."""
  theirs, model, _, _, directory = pair
  tokens = _tokens()
  theirs.zero_grad()
  (theirs(torch.tensor(tokens.astype(np.int64))).logits ** 2).mean().backward()
  # Through files, in which experts are apart that torch has in one tensor.
  holder = copy.deepcopy(theirs)
  for parameter, original in zip(holder.parameters(), theirs.parameters(), strict=True):
    parameter.data = original.grad
  holder.save_pretrained(directory / "their_grads")
  models.save(directory / "grads", model, gradients)
  named, ours = (safetensors.read(directory / name) for name in ("their_grads", "grads"))
  assert set(named) == set(ours)
  for name, grad in named.items():
    np.testing.assert_allclose(ours[name], grad, rtol=1e-3, atol=1e-4, err_msg=name)


def test_saved_directory_is_loaded_by_transformers(pair, tmp_path):
  theirs, model, params, _, _ = pair
  models.save(tmp_path, model, params)
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, attn_implementation=theirs.config._attn_implementation
  ).eval()
  tokens = _tokens()
  np.testing.assert_array_equal(_reference(again, tokens), _reference(theirs, tokens))
  _, back, _ = models.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, params, back)


def test_old_key_names_and_shards(tmp_path):
  theirs = _llama(rope_parameters=LLAMA3).eval()
  theirs.save_pretrained(tmp_path, max_shard_size="20KB")
  assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
  config = json.loads((tmp_path / "config.json").read_text())
  rope = config.pop("rope_parameters")
  config["rope_theta"] = rope.pop("rope_theta")
  config["rope_scaling"] = rope
  config["torch_dtype"] = config.pop("dtype")
  (tmp_path / "config.json").write_text(json.dumps(config))
  model, params, _ = models.load(tmp_path)
  tokens = _tokens()
  ours = model.apply({"params": params}, tokens)
  np.testing.assert_allclose(ours, _reference(theirs, tokens), atol=1e-4)


def _broken(tmp_path, change):
  _llama().save_pretrained(tmp_path)
  tensors = dict(safetensors.read(tmp_path))
  change(tensors)
  tensors = {name: np.array(value) for name, value in tensors.items()}
  safetensors.write(tmp_path / "model.safetensors", tensors)
  return tmp_path


def test_missing_and_left_over_tensors_are_listed(tmp_path):
  def change(tensors):
    tensors["model.layers.1.mlp.gate.weight"] = tensors.pop("model.layers.1.mlp.gate_proj.weight")

  with pytest.raises(ValueError, match=r"missing: .*gate_proj.*left over: .*mlp\.gate\.weight"):
    models.load(_broken(tmp_path, change))


def test_misshapen_tensors_are_listed(tmp_path):
  def change(tensors):
    tensors["model.norm.weight"] = np.ones(31, np.float32)

  with pytest.raises(ValueError, match=r"do not fit: model\.norm\.weight gives \(31,\)"):
    models.load(_broken(tmp_path, change))


def test_unknown_architecture_rope_and_activation():
  with pytest.raises(ValueError, match="'lama' is unknown; known: llama, gpt2, .*; did you mean"):
    models.build({"model_type": "lama"})
  config = _llama().config.to_dict()
  with pytest.raises(ValueError, match="rope type 'yarm' is unknown"):
    models.build(config | {"rope_parameters": {"rope_type": "yarm", "rope_theta": 1.0}})
  with pytest.raises(ValueError, match="activation 'mish' is unknown"):
    models.build(config | {"hidden_act": "mish"})
  with pytest.raises(ValueError, match="lacks 'hidden_size'"):
    models.build({k: v for k, v in config.items() if k != "hidden_size"})


def test_unknown_source():
  with pytest.raises(FileNotFoundError, match="no model at 'no/such/model'"):
    models.load("no/such/model")
  with pytest.raises(ValueError, match="did you mean 'smollm2-135m-instruct'"):
    models.load("smollm2-135m-instruc")


@pytest.fixture(scope="module")
def smollm2(smollm2_path):
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
  ).eval()
  return theirs, *models.load(smollm2_path)


def test_smollm2_logits_and_greedy_text(smollm2):
  theirs, model, params, tokenizer = smollm2
  text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
  tokens = np.array([tokenizer.encode(text)], np.int32)
  apply = jax.jit(model.apply)
  ours = np.asarray(apply({"params": params}, tokens))
  np.testing.assert_allclose(ours, _reference(theirs, tokens), atol=1e-3)
  made = theirs.generate(
    torch.tensor(tokens.astype(np.int64)), max_new_tokens=12, do_sample=False
  ).numpy()
  # Greedy: each generated token is the argmax of our logits given what stands before it.
  logits = np.asarray(apply({"params": params}, made.astype(np.int32)))
  start = tokens.shape[1]
  np.testing.assert_array_equal(logits[0, start - 1 : -1].argmax(-1), made[0, start:])
