"""Whole modules and rows of the table beside adapters: PEFT's files both ways."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import peft as hf_peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from research import models, peft
from research.core import tree
from research.models import families
from research.peft.saved import Saved

KEY = jax.random.key(0)
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 10)).astype(np.int32)
ROWS = [int(TOKENS[0, 3]), 60, int(TOKENS[1, 7])]
LLAMA = {
  "model_type": "llama",
  "vocab_size": 61,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "attention_bias": True,
}
GPT2 = {
  "model_type": "gpt2",
  "vocab_size": 61,
  "n_embd": 32,
  "n_layer": 2,
  "n_head": 4,
  "n_positions": 64,
}
LORA = {"target": "layers/mlp/down_proj/kernel", "name": "lora", "rank": 2}
IA3 = {"target": "layers/mlp/down_proj/kernel", "name": "ia3"}
ROWS_RULE = {"name": "trainable_tokens", "tokens": ROWS}
DOWN = {"llama": ["down_proj"], "tied": ["down_proj"], "gpt2": ["mlp.c_proj"]}


def _lora(family, **more):
  return hf_peft.LoraConfig(r=2, target_modules=DOWN[family], **more)


# The family, our rules, parameters that train beside, and PEFT's config of the same.
CASES = {
  "a head and projections with biases": (
    "llama",
    [LORA],
    ["lm_head/kernel", "layers/attention/q_proj/kernel", "layers/attention/q_proj/bias"],
    _lora("llama", modules_to_save=["lm_head", "q_proj"]),
  ),
  "a table and a head of its own": (
    "llama",
    [LORA],
    ["embed/embedding", "lm_head/kernel"],
    _lora("llama", modules_to_save=["embed_tokens", "lm_head"]),
  ),
  "beside IA3": (
    "llama",
    [IA3],
    ["lm_head/kernel"],
    hf_peft.IA3Config(
      target_modules=["down_proj"], feedforward_modules=["down_proj"], modules_to_save=["lm_head"]
    ),
  ),
  "a fused module": (
    "gpt2",
    [LORA],
    [f"layers/attention/{x}_proj/{leaf}" for x in "qkv" for leaf in ("kernel", "bias")],
    _lora("gpt2", modules_to_save=["c_attn"]),
  ),
  "a table that is the head": (  # of GPT-2 PEFT takes the two apart
    "tied",
    [LORA],
    ["embed/embedding"],
    _lora("tied", modules_to_save=["embed_tokens"], ensure_weight_tying=True),
  ),
  "tokens": ("llama", [ROWS_RULE], [], hf_peft.TrainableTokensConfig(token_indices=ROWS)),
  "tokens of a head, too": (
    "gpt2",
    [ROWS_RULE],
    [],
    hf_peft.TrainableTokensConfig(token_indices=ROWS),
  ),
  "tokens beside LoRA": (
    "gpt2",
    [LORA, ROWS_RULE],
    [],
    _lora("gpt2", trainable_token_indices=ROWS),
  ),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """By family: a directory, the model, its parameters, compiled `apply`."""
  found = {}
  tied = LLAMA | {"tie_word_embeddings": True, "num_hidden_layers": 1}
  for name, config in (("llama", LLAMA), ("tied", tied), ("gpt2", GPT2)):
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(
      transformers.AutoConfig.for_model(**config)
    )
    for parameter in theirs.parameters():
      torch.nn.init.normal_(parameter, std=0.2)
    directory = tmp_path_factory.mktemp(name)
    theirs.save_pretrained(directory)
    model, params, _ = models.load(directory)
    # A loop over the layers compiles in half the time.
    found[name] = directory, model, params, jax.jit(model.clone(unroll=1).apply)
  return found


def _modules(model):
  return families.find(model.config.family).modules(model.config)


def _noisy(leaf):
  return leaf + 0.2 * jax.random.normal(KEY, leaf.shape)


def _base(directory):
  return transformers.AutoModelForCausalLM.from_pretrained(directory)


def _logits(theirs):
  with torch.no_grad():
    return theirs.eval()(torch.tensor(TOKENS.astype(np.int64))).logits.numpy()


def _apply(apply, params, adapters):
  params, adapters = peft.install(params, adapters)
  return apply({"params": params, "adapters": adapters}, TOKENS)


@pytest.mark.parametrize("name", CASES)
def test_peft_both_ways(bases, tmp_path, name):
  family, rules, beside, config = CASES[name]
  directory, model, params, apply = bases[family]
  modules = _modules(model)
  plain = apply({"params": params}, TOKENS)
  adapters = peft.attach(rules, params, KEY)
  trains = peft.trainable_paths(adapters)
  adapters = tree.map_with_path(lambda p, leaf: _noisy(leaf) if p in trains else leaf, adapters)
  trained = tree.map_with_path(lambda p, leaf: _noisy(leaf) if p in beside else leaf, params)
  ours = apply({"params": trained, "adapters": adapters}, TOKENS)
  assert np.abs(ours - plain).max() > 0.1
  both = peft.with_saved(adapters, trained, beside)
  np.testing.assert_array_equal(_apply(apply, params, both), ours)
  if not beside:
    np.testing.assert_allclose(
      apply({"params": peft.merge(params, adapters)}, TOKENS), ours, atol=2e-5
    )
  peft.save(tmp_path / "ours", both, modules, base_model=str(directory))
  read = hf_peft.PeftModel.from_pretrained(_base(directory), tmp_path / "ours")
  np.testing.assert_allclose(_logits(read), ours, atol=1e-4)
  again = peft.load(tmp_path / "ours", params, modules)
  np.testing.assert_array_equal(_apply(apply, params, again), ours)

  torch.manual_seed(1)
  theirs = hf_peft.get_peft_model(_base(directory), config)
  counted = sum(leaf.size for p, leaf in tree.flatten(both).items() if _is_trained(p, trains))
  assert theirs.get_nb_trainable_parameters()[0] == counted
  for parameter in theirs.parameters():
    if parameter.requires_grad:
      parameter.data += 0.2 * torch.randn_like(parameter)
  theirs.save_pretrained(tmp_path / "theirs")
  loaded = peft.load(tmp_path / "theirs", params, modules)
  np.testing.assert_allclose(_apply(apply, params, loaded), _logits(theirs), atol=1e-4)
  assert {path for path, node in peft.sites(loaded) if isinstance(node, Saved)} == set(beside)


def _is_trained(path, trains):
  return path in trains or path.endswith("/value")


def test_rows_that_were_not_trained_change_no_bit(bases):
  _, _, params, apply = bases["gpt2"]  # whose head is the table
  adapters = peft.attach([ROWS_RULE], params, KEY)
  np.testing.assert_array_equal(
    apply({"params": params, "adapters": adapters}, TOKENS), apply({"params": params}, TOKENS)
  )


def test_a_layer_s_module_leaves_the_others_as_they_are(bases, tmp_path):
  directory, model, params, apply = bases["llama"]
  config = _lora("llama", modules_to_save=["layers.1.mlp.up_proj"])
  theirs = hf_peft.get_peft_model(_base(directory), config)
  for parameter in theirs.parameters():
    if parameter.requires_grad:
      parameter.data += 0.2
  theirs.save_pretrained(tmp_path)
  adapters = peft.load(tmp_path, params, _modules(model))
  np.testing.assert_allclose(_apply(apply, params, adapters), _logits(theirs), atol=1e-4)
  path = "layers/mlp/up_proj/kernel"
  value, old = dict(peft.sites(adapters))[path].value, tree.flatten(params)[path]
  np.testing.assert_array_equal(value[0], old[0])
  assert np.abs(value[1] - old[1]).min() > 0.1


@pytest.mark.parametrize(
  ("family", "rules", "beside", "told"),
  [
    ("llama", [LORA], ["final_norm/scale"], "whole modules; 'final_norm/scale' is none"),
    ("gpt2", [LORA], ["layers/attention/q_proj/kernel"], "of 'transformer.*weight' a part"),
    ("gpt2", [IA3], ["embed/embedding"], "a table that is the head beside LoRA, not beside IA3"),
    ("llama", [ROWS_RULE], ["lm_head/kernel"], "no whole module, as at .*, beside no adapter"),
    ("llama", [IA3, ROWS_RULE], [], "alone or beside LoRA, not beside IA3"),
  ],
)
def test_what_peft_has_no_place_for(bases, tmp_path, family, rules, beside, told):
  _, model, params, _ = bases[family]
  adapters = peft.with_saved(peft.attach(rules, params, KEY), params, beside)
  with pytest.raises(ValueError, match=told):
    peft.save(tmp_path, adapters, _modules(model))


def test_files_that_cannot_be(bases, tmp_path):
  _, model, params, _ = bases["gpt2"]
  adapters = peft.attach([LORA], params, KEY)
  peft.save(tmp_path, peft.with_saved(adapters, params, ["embed/embedding"]), _modules(model))
  file = tmp_path / "adapter_config.json"
  config = json.loads(file.read_text())
  for change, told in (
    ({"trainable_token_indices": [1]}, "has no .*token_adapter.trainable_tokens_delta"),
    ({"trainable_token_indices": {"lm_head": [1]}}, "trainable tokens of lm_head cannot"),
    ({"modules_to_save": None, "ensure_weight_tying": False}, "tensors that are no LoRA factors"),
  ):
    file.write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=told):
      peft.load(tmp_path, params, _modules(model))
  file.write_text(json.dumps(config))
  file = tmp_path / "adapter_model.safetensors"
  save_file({k: v for k, v in load_file(file).items() if "lm_head" not in k}, file)
  with pytest.raises(ValueError, match="a table of tokens that is not the head, too"):
    peft.load(tmp_path, params, _modules(model))


def test_what_cannot_be_saved_or_put_in_place(bases):
  _, _, params, apply = bases["llama"]
  adapters = peft.attach([LORA], params, KEY)
  with pytest.raises(ValueError, match="'layers/mlp/down_proj/kernel' was trained and has an"):
    peft.with_saved(adapters, params, [LORA["target"]])
  saved = {"lm_head": {"kernel": Saved(jnp.ones((2, 3)))}}
  with pytest.raises(ValueError, match=r"\(2, 3\) was saved; the model has one of \(32, 61\)"):
    peft.install(params, saved)
  with pytest.raises(TypeError, match="where peft.install puts it"):
    apply({"params": params, "adapters": saved}, TOKENS)


def test_tokens_are_ids_or_texts_of_one_token(bases):
  _, _, params, _ = bases["llama"]
  words = {"one": [7], "two words": [1, 2]}
  tokenizer = types.SimpleNamespace(encode=lambda text, add_special: words[text])

  def ids(*tokens):
    rule = {"name": "trainable_tokens", "tokens": tokens}
    return peft.attach([rule], params, KEY, tokenizer)["embed"]["embedding"].ids

  assert ids("one", 3) == (7, 3)
  for tokens, told in (
    (("two words",), r"'two words' is 2 tokens, \[1, 2\]"),
    ((), "one or more, each once"),
    ((7, "one"), "one or more, each once"),
    ((61,), "the table has 0 to 60"),
  ):
    with pytest.raises(ValueError, match=told):
      ids(*tokens)
