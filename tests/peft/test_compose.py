"""Several adapters active at once: against PEFT, merging and plain forms."""

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
from research.peft.bottleneck import Bottleneck
from research.peft.compose import Stacked
from research.peft.prefix import Offset, Prefix
from research.peft.prompt import Prompt

KEY = jax.random.key(0)
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 7)).astype(np.int32)
GPT2 = {"vocab_size": 31, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """A GPT-2, for its biases: directory, config, compiled function, parameters."""
  torch.manual_seed(0)
  theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
  for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
  directory = tmp_path_factory.mktemp("compose")
  theirs.save_pretrained(directory)
  model, params, _ = models.load(directory)
  return directory, model.config, jax.jit(model.clone(unroll=1).apply), params


def _run(apply, params, adapters=None):
  variables = {"params": params} | ({"adapters": adapters} if adapters else {})
  return np.asarray(apply(variables, TOKENS))


def _trained(rules, params, seed=0):
  adapters = peft.attach(rules, params, KEY)
  trains = peft.trainable_paths(adapters)
  draws = np.random.default_rng(seed)
  noise = lambda leaf: jnp.asarray(0.2 * draws.normal(size=leaf.shape), jnp.float32)  # noqa: E731
  return tree.map_with_path(
    lambda path, leaf: leaf + noise(leaf) if path in trains else leaf, adapters
  )


def test_two_loras_are_those_of_peft(world, tmp_path):
  directory, config, apply, params = world
  base = transformers.AutoModelForCausalLM.from_pretrained(directory)
  configs = {
    "first": hf_peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_fc"]),
    "second": hf_peft.LoraConfig(r=2, target_modules=["c_fc", "mlp.c_proj"]),
  }
  theirs = hf_peft.get_peft_model(base, configs["first"], adapter_name="first").eval()
  theirs.add_adapter("second", configs["second"])
  for name, parameter in theirs.named_parameters():
    if "lora_" in name:
      torch.nn.init.normal_(parameter, std=0.2)
  theirs.save_pretrained(tmp_path)
  modules = families.find("gpt2").modules(config)
  ours = [peft.load(tmp_path / name, params, modules) for name in configs]
  theirs.base_model.set_adapter(list(configs))
  with torch.no_grad():
    want = theirs(torch.tensor(TOKENS.astype(np.int64))).logits.numpy()
  both = peft.stacked(ours)
  np.testing.assert_allclose(_run(apply, params, both), want, atol=1e-4)
  # What one has alone is as it was, and the sum of updates is another way to the same.
  assert both["layers"]["attention"] == ours[0]["layers"]["attention"]
  summed = peft.combine(ours, (1, 1), "cat")
  np.testing.assert_allclose(_run(apply, params, summed), want, atol=1e-4)


def test_methods_act_in_turn_and_merge_in_turn(world):
  _, _, apply, params = world
  up, down = ("layers/mlp/up_proj/kernel", "layers/mlp/down_proj/kernel")
  trees = [
    _trained([{"target": up, "name": "dora", "rank": 2}, {"target": down, "name": "ia3"}], params),
    _trained([{"target": f"{up}|{down}", "name": "lora", "rank": 2, "freeze_a": True}], params, 1),
    _trained([{"target": up, "name": "ia3"}, {"target": down, "name": "vera", "rank": 3}], params),
  ]
  trees[0]["layers"]["mlp"]["down_proj"]["kernel"] = trees[0]["layers"]["mlp"]["down_proj"][
    "kernel"
  ].replace(feedforward=True)
  all_three = peft.stacked(trees)
  logits = _run(apply, params, all_three)
  want = _run(apply, peft.merge(params, all_three))
  assert np.abs(logits - _run(apply, peft.merge(params, trees[0]))).max() > 0.1
  np.testing.assert_allclose(logits, want, rtol=0, atol=1e-5 * np.abs(want).max())
  fields = {path.removeprefix(f"{up}/parts/") for path in peft.trainable_paths(all_three)}
  assert {field for field in fields if field[0].isdigit()} == {
    "0/a", "0/b", "0/magnitude", "1/b", "2/scale"
  }  # fmt: skip
  assert all(adapter.frozen_kernel == ("up" in path) for path, adapter in peft.sites(all_three))


def test_virtual_tokens_and_prefixes_follow_each_other():
  draws = np.random.default_rng(0)
  numbers = lambda *shape: jnp.asarray(draws.normal(size=shape), jnp.float32)  # noqa: E731
  first, second, third = (Prompt(numbers(n, 4)) for n in (3, 2, 1))
  every = Stacked((first, Stacked((second, third))))
  assert peft.virtual_ids({"embed": {"prompt": every}}) == [-1, -2, -3, -4, -5, -6]
  ids, value = jnp.asarray([[-1, -2, -3, -4, -5, -6, 7, 0]]), numbers(1, 8, 4)
  whole = Prompt(jnp.concatenate([first.embedding, second.embedding, third.embedding]))
  np.testing.assert_array_equal(every(value, ids=ids), whole(value, ids=ids))

  old, new = (Prefix(numbers(n, 6), numbers(n, 6)) for n in (2, 3))
  kv = numbers(2, 2, 5, 3), numbers(2, 2, 5, 3), jnp.ones((2, 5, 5), bool), numbers(1, 4, 5, 5)
  both = Prefix(
    *(jnp.concatenate([b, a]) for a, b in ((old.keys, new.keys), (old.values, new.values)))
  )
  for got, want in zip(Stacked((old, new))(kv), both(kv), strict=True):
    np.testing.assert_array_equal(got, want)
  offsets = peft.stacked([{"offset": Offset(2)}, {"offset": Offset(3)}])
  assert peft.offset(offsets) == 5
  np.testing.assert_array_equal(offsets["offset"](jnp.asarray([0, 4, -1])), [5, 9, -1])


def test_what_trains_another_form_is_made_into_what_acts(world):
  *_, params = world
  rules = [{"name": "p_tuning", "tokens": 2}], [{"name": "prompt", "tokens": 1}]
  trees = [peft.attach(rule, params, KEY) for rule in rules]
  made = peft.materialize({"adapters": peft.stacked(trees)})["adapters"]["embed"]["prompt"]
  assert [type(part).__name__ for part in made.parts] == ["EncodedPrompt", "Prompt"]
  assert made.virtual_tokens == 3 and not made.mergeable


def test_dropout_differs_between_them():
  ones = jnp.ones((1, 40, 4))
  alone = Bottleneck(
    jnp.ones((4, 2)), jnp.ones(2), jnp.ones((2, 4)), jnp.ones(4), None, None, dropout=0.5
  )
  out = Stacked((alone, alone.replace(reads="input")))(ones, x=ones, stream=ones, rng=KEY)
  # 1, one of two updates, or both: equal draws would have no third value.
  assert len(np.unique(np.asarray(out).round(3))) > 2


@pytest.mark.parametrize(
  "second", [{"name": "dora", "rank": 2}, {"name": "ia3", "feedforward": True}]
)
def test_what_goes_by_the_kernel_is_first(world, second):
  *_, params = world
  target = {"target": "layers/mlp/up_proj/kernel"}
  trees = [
    peft.attach([target | rule], params, KEY) for rule in ({"name": "lora", "rank": 2}, second)
  ]
  peft.stacked(trees[::-1])
  with pytest.raises(
    ValueError, match="at 'layers/mlp/up_proj/kernel' goes by the kernel as it is"
  ):
    peft.stacked(trees)


def test_a_part_of_the_base_is_made_plain_first(world):
  *_, params = world
  rule = {"target": "layers/mlp/up_proj/kernel", "name": "lora", "rank": 2, "start": "olora"}
  with pytest.raises(ValueError, match="is a part of its base; peft.plain"):
    peft.stacked([peft.attach([rule], params, KEY)])
