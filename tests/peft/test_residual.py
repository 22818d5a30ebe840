"""PiSSA and OLoRA: LoRAs that begin as a part of their base, against PEFT's."""

import jax
import jax.numpy as jnp
import numpy as np
import peft as hf_peft
import pytest
import torch
import transformers

from research import models, peft
from research.core import tree
from research.models import families
from research.peft.decompositions import STARTS

KEY = jax.random.key(0)
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 10)).astype(np.int32)
RULE = {"target": "layers/.*_proj/kernel", "name": "lora", "rank": 4, "alpha": 8}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request, tmp_path_factory):
  torch.manual_seed(0)
  if request.param == "llama":
    theirs = transformers.LlamaForCausalLM(
      transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
      )
    )
  else:
    theirs = transformers.GPT2LMHeadModel(
      transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    )
  for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
  directory = tmp_path_factory.mktemp(request.param)
  theirs.save_pretrained(directory)
  model, params, _ = models.load(directory)
  # A loop over the layers compiles in half the time.
  return directory, model, params, jax.jit(model.clone(unroll=1).apply)


def _modules(model):
  return families.find(model.config.family).modules(model.config)


def _logits(theirs):
  with torch.no_grad():
    return theirs(torch.tensor(TOKENS.astype(np.int64))).logits.numpy()


def _load(directory):
  return transformers.AutoModelForCausalLM.from_pretrained(directory)


@pytest.mark.parametrize("start", STARTS)
def test_the_model_is_the_same_at_first_and_so_is_peft_s(base, start):
  directory, model, params, apply = base
  adapters = peft.attach([RULE | {"start": start}], params, KEY)
  rest = peft.residual(params, adapters)
  before = np.asarray(apply({"params": params}, TOKENS))
  after = apply({"params": rest, "adapters": adapters}, TOKENS)
  np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())

  if (model.config.family, start) == ("gpt2", "olora"):
    return  # PEFT takes the matrix of a Conv1D for its transpose
  target = ["o_proj", "down_proj"] if model.config.family == "llama" else ["c_proj"]
  config = hf_peft.LoraConfig(r=4, lora_alpha=8, target_modules=target, init_lora_weights=start)
  theirs = hf_peft.get_peft_model(_load(directory), config)
  ours = dict(peft.sites(adapters))
  modules = _modules(model)
  for path in ("layers/attention/o_proj/kernel", "layers/mlp/down_proj/kernel"):
    for layer in range(2):
      module = theirs.get_submodule(f"base_model.model.{modules[path][0].format(layer)}")
      product = (module.lora_B["default"].weight @ module.lora_A["default"].weight).T
      mine = ours[path].a[layer] @ ours[path].b[layer]
      np.testing.assert_allclose(mine, product.detach().numpy(), atol=1e-5)
      left = module.base_layer.weight.detach().numpy()
      left = left.T if model.config.family == "llama" else left
      np.testing.assert_allclose(tree.flatten(rest)[path][layer], left, atol=1e-5)


def test_pissa_takes_the_largest_singular_values_out():
  kernel = np.random.default_rng(0).normal(size=(12, 9)).astype(np.float32)
  adapters = peft.attach(
    [{"target": "kernel", "name": "lora", "rank": 3, "alpha": 7, "start": "pissa"}],
    {"kernel": jnp.asarray(kernel)},
    KEY,
  )
  rest = np.linalg.svd(peft.residual({"kernel": jnp.asarray(kernel)}, adapters)["kernel"])[1]
  values = np.linalg.svd(kernel)[1]
  np.testing.assert_allclose(rest, [*values[3:], 0, 0, 0], atol=1e-5)


def test_other_adapters_leave_the_base_as_it_is(base):
  _, _, params, _ = base
  adapters = peft.attach([RULE], params, KEY)
  assert peft.starts(adapters) == {}
  same = jax.tree.map(lambda a, b: a is b, peft.residual(params, adapters), params)
  assert jax.tree.all(same)
  assert jax.tree.all(jax.tree.map(lambda a, b: a is b, peft.plain(adapters, {}), adapters))


@pytest.mark.parametrize("start", STARTS)
def test_what_was_learnt_is_a_plain_lora_of_the_base_as_it_was(base, tmp_path, start):
  directory, model, params, apply = base
  # Ranks that differ by layer, so that live columns have to be put together.
  rule = RULE | {"start": start, "rank_pattern": {"layers/1/.*": 2}}
  adapters = peft.attach([rule], params, KEY)
  starts, rest = peft.starts(adapters), peft.residual(params, adapters)
  trains = peft.trainable_paths(adapters)

  def train(path, leaf):
    noise = 0.05 * jax.random.normal(jax.random.key(len(path)), leaf.shape) * (leaf != 0)
    return leaf + noise if path in trains else leaf

  adapters = tree.map_with_path(train, adapters)
  trained = apply({"params": rest, "adapters": adapters}, TOKENS)
  assert np.abs(trained - apply({"params": params}, TOKENS)).max() > 0.1
  plain = peft.plain(adapters, starts)
  _, some = next(peft.sites(plain))
  assert some.ranks == (8, 4)
  peft.save(tmp_path, plain, _modules(model))
  theirs = hf_peft.PeftModel.from_pretrained(_load(directory), tmp_path).eval()
  np.testing.assert_allclose(trained, _logits(theirs), atol=1e-4)
  with pytest.raises(ValueError, match="its start is unknown"):
    peft.plain(adapters, {})


def test_a_run_that_goes_on_finds_the_same_base(base):
  _, _, params, _ = base
  twice = []
  for _ in range(2):
    adapters = peft.attach([RULE | {"start": "pissa"}], params, KEY)
    twice.append(tree.flatten((adapters, peft.residual(params, adapters))))
  for path, leaf in twice[0].items():
    np.testing.assert_array_equal(leaf, twice[1][path])


def test_a_part_of_half_the_experts_base():
  """Stacks of experts have a start of each."""
  path = "layers/mlp/experts/up_proj/kernel"
  params = tree.unflatten({path: jax.random.normal(KEY, (2, 3, 6, 5))})
  rule = {"target": path, "name": "lora", "rank": 5, "start": "pissa"}
  rest = peft.residual(params, peft.attach([rule], params, KEY))
  # Of full rank, nothing is left.
  assert np.abs(tree.flatten(rest)[path]).max() < 1e-5
