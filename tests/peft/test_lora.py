"""LoRA: rules, initial state, merge, and PEFT's format both ways."""

import json

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
from research.peft.lora import LoRA

KEY = jax.random.key(0)
EVERY = {"target": "layers/.*_proj/kernel", "name": "lora", "rank": 4, "alpha": 8}


def _llama():
  return transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=61,
      hidden_size=32,
      intermediate_size=48,
      num_hidden_layers=3,
      num_attention_heads=4,
      num_key_value_heads=2,
    )
  )


def _gpt2():
  return transformers.GPT2LMHeadModel(
    transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_positions=64)
  )


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request, tmp_path_factory):
  torch.manual_seed(0)
  theirs = {"llama": _llama, "gpt2": _gpt2}[request.param]().eval()
  for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
  directory = tmp_path_factory.mktemp(request.param)
  theirs.save_pretrained(directory)
  model, params, _ = models.load(directory)
  # A loop over the layers compiles in half the time.
  return directory, model, params, jax.jit(model.clone(unroll=1).apply)


TOKENS = np.random.default_rng(0).integers(0, 61, (2, 10)).astype(np.int32)


def _modules(model):
  return families.find(model.config.family).modules(model.config)


def _trained(adapters, seed=1):
  """As after training: no factor is zero where it may differ from zero."""

  def randomize(path, leaf):
    if path.rsplit("/", 1)[1] not in ("a", "b"):
      return leaf
    noise = jax.random.normal(jax.random.fold_in(KEY, hash(path) % 1000 + seed), leaf.shape)
    return leaf + 0.1 * noise

  return tree.map_with_path(randomize, adapters)


def _mask_padding(adapters):
  """Zeroes what lies beyond each layer's rank, which training keeps at zero."""

  def mask(lora):
    live = np.arange(lora.a.shape[-1]) < np.reshape(lora.ranks, lora.scale.shape + (1,))
    return lora.replace(a=lora.a * live[..., None, :], b=lora.b * live[..., None])

  return jax.tree.map(mask, adapters, is_leaf=lambda x: isinstance(x, peft.Adapter))


def _theirs(base_directory, adapter_directory):
  theirs = transformers.AutoModelForCausalLM.from_pretrained(base_directory)
  return hf_peft.PeftModel.from_pretrained(theirs, adapter_directory).eval()


def _logits(theirs):
  with torch.no_grad():
    return theirs(torch.tensor(TOKENS.astype(np.int64))).logits.numpy()


def test_a_new_adapter_changes_nothing_and_counts_right(base):
  _, _, params, apply = base
  adapters = peft.attach([EVERY], params, KEY)
  before = apply({"params": params}, TOKENS)
  after = apply({"params": params, "adapters": adapters}, TOKENS)
  np.testing.assert_allclose(after, before, atol=2e-6)  # another program: rounding may differ
  kernels = [v.shape for k, v in tree.flatten(params).items() if "_proj/kernel" in k]
  want = sum(n * 4 * (i + o) for n, i, o in kernels)
  leaves = tree.flatten(adapters)
  assert sum(leaves[path].size for path in peft.trainable_paths(adapters)) == want


def test_merge_is_the_same_function(base):
  _, _, params, apply = base
  adapters = _trained(peft.attach([EVERY], params, KEY))
  with_adapter = apply({"params": params, "adapters": adapters}, TOKENS)
  merged = apply({"params": peft.merge(params, adapters)}, TOKENS)
  np.testing.assert_allclose(with_adapter, merged, atol=2e-4)
  assert np.abs(merged - apply({"params": params}, TOKENS)).max() > 0.1


def test_derivative_is_that_of_the_merged_model(base):
  _, model, params, _ = base
  adapters = _trained(peft.attach([EVERY], params, KEY))

  def through_taps(a):
    return jnp.mean(model.apply({"params": params, "adapters": a}, TOKENS) ** 2)

  def through_merge(a):
    return jnp.mean(model.apply({"params": peft.merge(params, a)}, TOKENS) ** 2)

  got, want = jax.jit(jax.grad(through_taps))(adapters), jax.jit(jax.grad(through_merge))(adapters)
  trained = peft.trainable_paths(adapters)
  got, want = tree.flatten(got), tree.flatten(want)
  for path in trained:
    np.testing.assert_allclose(got[path], want[path], rtol=2e-3, atol=2e-4, err_msg=path)


def test_peft_loads_ours(base, tmp_path):
  directory, model, params, apply = base
  rules = [
    EVERY | {"target": "layers/attention/q_proj/kernel", "rank": 2, "rank_stabilized": True},
    EVERY | {"rank_pattern": {"layers/1/mlp/.*": 6}, "alpha_pattern": {"layers/2/.*": 3}},
  ]
  adapters = _mask_padding(_trained(peft.attach(rules, params, KEY)))
  peft.save(tmp_path, adapters, _modules(model), base_model=str(directory))
  ours = apply({"params": params, "adapters": adapters}, TOKENS)
  np.testing.assert_allclose(ours, _logits(_theirs(directory, tmp_path)), atol=1e-4)


def test_some_layers_only(base, tmp_path):
  """An adapter that PEFT trained on some layers comes back on those layers alone."""
  directory, model, params, apply = base
  target = ["c_proj"] if model.config.family == "gpt2" else ["q_proj", "down_proj"]
  theirs = hf_peft.get_peft_model(
    transformers.AutoModelForCausalLM.from_pretrained(directory),
    hf_peft.LoraConfig(target_modules=target, layers_to_transform=[0, 2], r=3, lora_alpha=5),
  ).eval()
  for name, parameter in theirs.named_parameters():
    if "lora_" in name:
      torch.nn.init.normal_(parameter, std=0.1)
  theirs.save_pretrained(tmp_path / "theirs")
  adapters = peft.load(tmp_path / "theirs", params, _modules(model))
  ours = apply({"params": params, "adapters": adapters}, TOKENS)
  np.testing.assert_allclose(ours, _logits(theirs), atol=1e-4)
  peft.save(tmp_path / "ours", adapters, _modules(model))
  np.testing.assert_allclose(ours, _logits(_theirs(directory, tmp_path / "ours")), atol=1e-4)


@pytest.mark.parametrize("stabilized", [False, True])
def test_ours_loads_peft(base, tmp_path, stabilized):
  directory, model, params, apply = base
  theirs = hf_peft.get_peft_model(
    transformers.AutoModelForCausalLM.from_pretrained(directory),
    hf_peft.LoraConfig(
      target_modules="all-linear",
      r=4,
      lora_alpha=10,
      use_rslora=stabilized,
      rank_pattern={r".*\.1\..*(q_proj|c_attn)": 2},
      alpha_pattern={r"down_proj|mlp\.c_proj": 3},
    ),
  ).eval()
  for name, parameter in theirs.named_parameters():
    if "lora_" in name:
      torch.nn.init.normal_(parameter, std=0.1)
  theirs.save_pretrained(tmp_path)
  adapters = peft.load(tmp_path, params, _modules(model))
  ours = apply({"params": params, "adapters": adapters}, TOKENS)
  np.testing.assert_allclose(ours, _logits(theirs), atol=1e-4)


def test_what_was_read_is_written_again(base, tmp_path):
  _, model, params, apply = base
  adapters = _mask_padding(
    _trained(peft.attach([EVERY | {"rank_pattern": {"layers/0/.*": 2}}], params, KEY))
  )
  modules = _modules(model)
  peft.save(tmp_path / "1", adapters, modules)
  again = peft.load(tmp_path / "1", params, modules)
  ours = apply({"params": params, "adapters": adapters}, TOKENS)
  np.testing.assert_allclose(apply({"params": params, "adapters": again}, TOKENS), ours, atol=2e-5)
  peft.save(tmp_path / "2", again, modules)
  for name in ("adapter_config.json", "adapter_model.safetensors"):
    one, two = ((tmp_path / n / name).read_bytes() for n in "12")
    assert one == two or model.config.family == "gpt2"


def test_an_alpha_that_is_no_round_number_is_read_as_it_was(base, tmp_path):
  _, model, params, _ = base
  rules = [EVERY | {"rank": 2, "rank_stabilized": True}]  # 8 / sqrt(2), of which 7 digits are short
  adapters = peft.attach(rules, params, KEY)
  peft.save(tmp_path, adapters, _modules(model))
  found = dict(peft.sites(peft.load(tmp_path, params, _modules(model))))
  for path, adapter in peft.sites(adapters):
    np.testing.assert_array_equal(found[path].scale, adapter.scale, err_msg=path)


def test_ranks_beyond_a_layers_own_stay_zero(base):
  _, model, params, _ = base
  adapters = peft.attach([EVERY | {"rank_pattern": {"layers/1/.*": 1}}], params, KEY)

  def loss(a):
    return jnp.mean(model.apply({"params": params, "adapters": a}, TOKENS) ** 2)

  grads = tree.flatten(jax.jit(jax.grad(loss))(_mask_padding(_trained(adapters))))
  for path in peft.trainable_paths(adapters):
    beyond = grads[path][1, :, 1:] if path.endswith("/a") else grads[path][1, 1:]
    assert not np.asarray(beyond).any(), path


def test_dropout_drops_in_training_only(base):
  _, model, params, apply = base
  adapters = _trained(peft.attach([EVERY | {"dropout": 0.5}], params, KEY))
  variables = {"params": params, "adapters": adapters}
  plain = apply(variables, TOKENS)
  train = jax.jit(lambda key: model.apply(variables, TOKENS, rngs={"dropout": key}))
  one, two = (train(jax.random.key(i)) for i in (1, 2))
  assert np.abs(one - plain).max() > 1e-2 and np.abs(one - two).max() > 1e-2


def test_dropout_keeps_the_mean():
  lora = LoRA(jnp.ones((16, 1)), jnp.ones((1, 1)), jnp.ones(()), (1,), 0.5)
  out = lora(jnp.zeros((4096, 1)), x=jnp.ones((4096, 16)), rng=KEY)
  np.testing.assert_allclose(out.mean(), 16.0, rtol=0.02)
  assert out.std() > 1


def test_rules_that_cannot_be():
  params = {"layers": {"mlp": {"up_proj": {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones(2)}}}}
  with pytest.raises(ValueError, match=r"rule 'layers/mlp/upproj/kernel' matches none.*up_proj"):
    peft.attach([EVERY | {"target": "layers/mlp/upproj/kernel"}], params, KEY)
  with pytest.raises(ValueError, match="did you mean 'rank'"):
    peft.attach([{"target": ".*kernel", "name": "lora", "rnk": 4}], params, KEY)
  with pytest.raises(ValueError, match="'lora'"):
    peft.attach([{"target": ".*kernel", "name": "lorra"}], params, KEY)
  with pytest.raises(ValueError, match="needs a matrix, a projection"):
    peft.attach([{"target": ".*bias", "name": "lora"}], params, KEY)
  with pytest.raises(ValueError, match="ranks start at 1"):
    peft.attach([{"target": ".*kernel", "name": "lora", "rank": 0}], params, KEY)
  with pytest.raises(ValueError, match=r"rank 4 at .*: a \[3, 4\] has 3 at most"):
    peft.attach([{"target": ".*kernel", "name": "lora", "rank": 4}], params, KEY)
  with pytest.raises(ValueError, match="start 'pisa' is unknown; did you mean 'pissa'"):
    peft.attach([{"target": ".*kernel", "name": "lora", "rank": 2, "start": "pisa"}], params, KEY)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"use_qalora": True}, "use_qalora=True cannot be honoured"),
    ({"use_dora": True}, "the adapter has no lora_magnitude_vector of '"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"init_lora_weights": "pissa_niter_4"}, "changes the base model"),
    ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
  ],
)
def test_configs_that_cannot_be_honoured(base, tmp_path, change, message):
  _, model, params, _ = base
  peft.save(tmp_path, peft.attach([EVERY], params, KEY), _modules(model))
  file = tmp_path / "adapter_config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(ValueError, match=message):
    peft.load(tmp_path, params, _modules(model))


def test_adapters_for_another_model(base, tmp_path):
  _, model, params, _ = base
  adapters = peft.attach([EVERY], params, KEY)
  peft.save(tmp_path, adapters, _modules(model))
  small = jax.tree.map(lambda x: x[:2] if x.ndim == 3 else x, params)
  with pytest.raises(ValueError, match=r"the adapter has .*\.2\..*, the model does not"):
    peft.load(tmp_path, small, _modules(model))
