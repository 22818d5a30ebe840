"""One LoRA of several: against PEFT's `add_weighted_adapter` and closed forms."""

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
WEIGHTS = (0.7, -1.3)
# Of one rank, at modules of which they share some and at one of which they share some layers.
FIRST = hf_peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
# Never the first of those combined: PEFT gives the new adapter its `use_rslora`, and another scale.
SECOND = hf_peft.LoraConfig(
  r=4, use_rslora=True, target_modules=["layers.0.self_attn.q_proj", "up_proj", "down_proj"]
)
THIRD = hf_peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """PEFT's model with three adapters, our parameters, and these adapters as we read them."""
  torch.manual_seed(0)
  root = tmp_path_factory.mktemp("combine")
  base = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=31,
      hidden_size=16,
      intermediate_size=24,
      num_hidden_layers=2,
      num_attention_heads=2,
    )
  )
  base.save_pretrained(root / "base")
  theirs = hf_peft.get_peft_model(base, FIRST, adapter_name="first")
  theirs.add_adapter("second", SECOND)
  theirs.add_adapter("third", THIRD)
  for name, parameter in theirs.named_parameters():
    if "lora_" in name:
      torch.nn.init.normal_(parameter, std=0.3)
  theirs.save_pretrained(root)
  model, params, _ = models.load(root / "base")
  modules = families.find("llama").modules(model.config)
  ours = {name: peft.load(root / name, params, modules) for name in ("first", "second", "third")}
  return theirs, params, modules, ours


def _updates(params, modules, adapters):
  """`module -> update [out, in]`, of the modules that have one."""
  found = {}
  zeros = jax.tree.map(jnp.zeros_like, params)
  merged = tree.flatten(peft.merge(zeros, adapters))
  for path, _ in peft.sites(adapters):
    for layer, update in enumerate(merged[path]):
      if update.any():
        found[modules[path][0].format(layer)] = np.asarray(update).T
  return found


def _theirs(model, name):
  found = {}
  for module, layer in model.base_model.model.named_modules():
    if name in getattr(layer, "lora_A", {}):
      update = layer.get_delta_weight(name).detach().numpy()
      if update.any():
        found[module] = update
  return found


def _require_equal(got, want):
  assert set(got) == set(want)
  for module, update in want.items():
    np.testing.assert_allclose(got[module], update, atol=1e-5, err_msg=module)


@pytest.mark.parametrize(
  ("method", "names", "extra"),
  [
    ("linear", ("first", "second"), {}),
    ("cat", ("first", "third"), {}),
    ("svd", ("first", "third"), {"rank": 2}),
    ("svd", ("third", "second"), {}),
    ("ties", ("first", "second"), {"density": 0.6}),
    ("ties_svd", ("third", "second"), {"density": 0.3, "rank": 3}),
    ("magnitude_prune", ("first", "second"), {"density": 0.5}),
    ("magnitude_prune_svd", ("first", "third"), {"density": 0.5}),
  ],
)
def test_updates_are_those_of_peft(world, method, names, extra):
  theirs, params, modules, ours = world
  new = f"{method}-{'-'.join(names)}"
  also = {"svd_rank": extra["rank"]} if "rank" in extra else {}
  theirs.add_weighted_adapter(
    list(names),
    list(WEIGHTS),
    new,
    combination_type=method,
    density=extra.get("density"),
    **also,
  )
  combined = peft.combine([ours[name] for name in names], WEIGHTS, method, **extra)
  _require_equal(_updates(params, modules, combined), _theirs(theirs, new))


def test_cat_is_the_sum_of_updates_and_leaves_as_a_lora(world, tmp_path):
  _, params, modules, ours = world
  combined = peft.combine([ours["first"], ours["second"], ours["third"]], (1, 2, -0.5), "cat")
  want = {}
  for weight, one in zip((1, 2, -0.5), ours.values(), strict=True):
    for module, update in _updates(params, modules, one).items():
      want[module] = want.get(module, 0) + weight * update
  _require_equal(_updates(params, modules, combined), want)
  ranks = combined["layers"]["attention"]["q_proj"]["kernel"].ranks
  assert ranks == (4 + 4 + 3, 4 + 3)  # the second is at the first layer alone
  peft.save(tmp_path, combined, modules)
  again = peft.load(tmp_path, params, modules)
  _require_equal(_updates(params, modules, again), want)


def _pair(seed=0, rank=2):
  """Two LoRAs of a kernel `[2, 6, 5]` in trees."""
  draws = np.random.default_rng(seed)
  numbers = lambda *shape: jnp.asarray(draws.normal(size=shape), jnp.float32)  # noqa: E731
  make = lambda: LoRA(numbers(2, 6, rank), numbers(2, rank, 5), jnp.full((2,), 0.5), (rank,) * 2)  # noqa: E731
  return [{"x": {"kernel": make()}} for _ in range(2)]


def test_dare_keeps_a_share_and_the_expectation():
  (one, _) = _pair(rank=4)
  lora = one["x"]["kernel"]
  found = peft.combine([one], [1.0], "dare_linear", density=0.25, rng=KEY)["x"]["kernel"]
  for got, whole in ((found.a, lora.a), (found.b, lora.b)):
    kept = np.asarray(got) != 0
    grown = np.sqrt(0.5) * np.asarray(whole) / 0.25
    np.testing.assert_allclose(got, np.where(kept, grown, 0), rtol=1e-6)
    assert 0 < kept.mean() < 0.6
  same = peft.combine([one], [1.0], "dare_linear", density=0.25, rng=KEY)["x"]["kernel"]
  other = peft.combine([one], [1.0], "dare_linear", density=0.25, rng=jax.random.key(1))
  np.testing.assert_array_equal(same.a, found.a)
  assert (np.asarray(other["x"]["kernel"].a) != np.asarray(found.a)).any()


def test_dare_of_updates_is_their_sum_on_average():
  pair = _pair()
  plain = peft.combine(pair, WEIGHTS, "svd", rank=5)["x"]["kernel"]
  draws = [
    peft.combine(pair, WEIGHTS, "dare_linear_svd", rank=5, density=0.5, rng=key)["x"]["kernel"]
    for key in jax.random.split(KEY, 150)
  ]
  updates = np.stack([np.asarray(v.a) @ np.asarray(v.b) for v in draws])
  error = updates.std(0) / np.sqrt(len(updates))
  np.testing.assert_array_less(
    np.abs(updates.mean(0) - np.asarray(plain.a @ plain.b)), 4.5 * error + 1e-5
  )


def test_dare_ties_is_ties_of_what_dare_leaves():
  """At density 1 nothing is dropped by either; below, signs are elected among what is left."""
  pair = _pair()
  ties = peft.combine(pair, WEIGHTS, "ties")["x"]["kernel"]
  dare = peft.combine(pair, WEIGHTS, "dare_ties", rng=KEY)["x"]["kernel"]
  np.testing.assert_array_equal(ties.a, dare.a)
  one = peft.combine(pair[:1], [1.0], "dare_linear", density=0.5, rng=KEY)["x"]["kernel"]
  elected = peft.combine(pair[:1], [1.0], "dare_ties", density=0.5, rng=KEY)["x"]["kernel"]
  np.testing.assert_array_equal(one.a, elected.a)  # alone, every number has the elected sign


@pytest.mark.parametrize(
  ("arguments", "told"),
  [
    ((WEIGHTS, "tie"), "method 'tie' is unknown; did you mean 'ties'"),
    (((1.0,), "cat"), "1 weights for 2 adapters"),
    (((1.0, float("nan")), "cat"), "finite"),
    ((WEIGHTS, "linear", {"density": 0.5}), "density 0.5 with 'linear', which prunes nothing"),
    ((WEIGHTS, "ties", {"density": 0.0}), "density is 0.0; it is above 0"),
    ((WEIGHTS, "ties", {"density": 1.5}), "density is 1.5"),
    ((WEIGHTS, "ties", {"rank": 2}), "rank 2 with 'ties'"),
    ((WEIGHTS, "svd", {"rank": 9}), r"rank 9 at 'x/kernel': a \[6, 5\] has 5 at most"),
    ((WEIGHTS, "dare_ties", {"density": 0.5}), "it needs rng"),
  ],
)
def test_what_cannot_be_asked_for(arguments, told):
  weights, method, *extra = arguments
  with pytest.raises(ValueError, match=told):
    peft.combine(_pair(), weights, method, **(extra[0] if extra else {}))


def test_what_cannot_be_combined():
  pair = _pair()
  with pytest.raises(ValueError, match="ranks 2 and 3 at 'x/kernel' cannot be added; 'cat'"):
    peft.combine([pair[0], _pair(rank=3)[0]], WEIGHTS)
  with pytest.raises(ValueError, match="there are no adapters"):
    peft.combine([], [])
  wide = {"x": {"kernel": jnp.ones((6, 7))}}
  other = peft.attach([{"target": ".*", "name": "lora", "rank": 2}], wide, KEY)
  with pytest.raises(ValueError, match=r"kernels \(2, 6, 5\) and \(6, 7\): of two bases"):
    peft.combine([pair[0], other], WEIGHTS)
  dora = peft.attach([{"target": ".*", "name": "dora", "rank": 2}], wide, KEY)
  with pytest.raises(ValueError, match="LoRAs alone .*'x/kernel' is a DoRA"):
    peft.combine([pair[0], dora], WEIGHTS)
  part = {"x": {"kernel": pair[1]["x"]["kernel"].replace(residual=True)}}
  with pytest.raises(ValueError, match="is a part of its base"):
    peft.combine([pair[0], part], WEIGHTS)
