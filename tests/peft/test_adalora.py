"""AdaLoRA's ranks, step by step as PEFT's allocator takes them away, and its penalty."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft as hf_peft
import pytest
import torch
import transformers

from research import models, peft
from research.core import tree
from research.models import families
from research.peft import ranks
from research.peft.adalora import Budget

KEY = jax.random.key(0)
STEPS = 14
BUDGET = {"target_r": 2, "tinit": 2, "tfinal": 3, "deltaT": 2, "beta1": 0.8, "beta2": 0.7}
RULE = {"target": "layers/.*_proj/kernel", "name": "adalora", "init_r": 5, **BUDGET}
RATE = 0.5


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A directory, the model and its parameters."""
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
  )
  directory = tmp_path_factory.mktemp("llama")
  transformers.LlamaForCausalLM(config).save_pretrained(directory)
  return directory, *models.load(directory)[:2]


def _modules(model):
  return families.find(model.config.family).modules(model.config)


def _theirs(directory):
  """PEFT's model with a new adapter."""
  torch.manual_seed(1)
  config = hf_peft.AdaLoraConfig(
    init_r=5, lora_alpha=8, total_step=STEPS, target_modules="all-linear", **BUDGET
  )
  return hf_peft.get_peft_model(
    transformers.AutoModelForCausalLM.from_pretrained(directory), config
  )


def _split(adapters):
  trains = peft.trainable_paths(adapters)
  variables = {"adapters": adapters}
  return tree.partition(variables, lambda path, _: path.removeprefix("adapters/") in trains)


def _of_peft(theirs, model, adapters, read):
  """Like `adapters`, with `read(parameter)` of PEFT's at each entry, in our orientation."""
  flat = {}
  for path, node in peft.sites(adapters):
    each = [
      theirs.get_submodule(f"base_model.model.{_modules(model)[path][0].format(i)}")
      for i in range(2)
    ]
    parts = {
      name: np.stack([read(getattr(m, f"lora_{name.upper()}")["default"]) for m in each])
      for name in "aeb"
    }
    flat[path] = node.replace(
      a=jnp.asarray(parts["a"].swapaxes(1, 2)),
      e=jnp.asarray(parts["e"][..., 0]),
      b=jnp.asarray(parts["b"].swapaxes(1, 2)),
    )
  return tree.unflatten(flat)


def test_ranks_go_as_in_peft(base):
  directory, model, params = base
  theirs = _theirs(directory)
  adapters = _of_peft(
    theirs, model, peft.attach([RULE], params, KEY), lambda p: p.detach().numpy().copy()
  )
  trainable, _ = _split(adapters)
  optimizer = peft.allocation(trainable, STEPS)(optax.sgd(RATE))
  state, update = optimizer.init(trainable), jax.jit(optimizer.update)
  learnt = [p for n, p in theirs.named_parameters() if "lora_" in n]
  generator = torch.Generator().manual_seed(0)
  counts = []
  for step in range(STEPS):
    for parameter in learnt:
      # Unequal from one parameter to the next, so that layers differ in their ranks.
      size = torch.rand((), generator=generator)
      parameter.grad = size * torch.randn(parameter.shape, generator=generator)
    gradients, _ = _split(_of_peft(theirs, model, adapters, lambda p: p.grad.numpy().copy()))
    updates, state = update(gradients, state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    with torch.no_grad():
      for parameter in learnt:
        parameter -= RATE * parameter.grad
    theirs.base_model.update_and_allocate(step)

    wanted = _of_peft(theirs, model, adapters, lambda p: p.detach().numpy())
    got, want = (tree.flatten(each) for each in (trainable["adapters"], wanted))
    for path, leaf in got.items():
      np.testing.assert_allclose(leaf, want[path], atol=1e-5, err_msg=f"{path} at {step}")
    zeros = {p: leaf == 0 for p, leaf in got.items() if p.endswith("/e")}
    for path, zero in zeros.items():
      np.testing.assert_array_equal(zero, want[path] == 0, err_msg=f"{path} at {step}")
    counts.append(sum(int((~zero).sum()) for zero in zeros.values()))
    allocator = theirs.base_model.rankallocator
    if allocator.exp_avg_ipt:
      mine = tree.flatten(state.sensitivity)["adapters/layers/mlp/up_proj/kernel/b"]
      name = "model.layers.1.mlp.up_proj.lora_B.default"
      np.testing.assert_allclose(mine[1], allocator.exp_avg_ipt[name].T, atol=1e-5)
  # 14 matrices: 5 ranks each at first, 2 in the end; between allocations they grow back.
  assert counts[:4] == [70] * 4 and counts[-4:] == [28] * 4
  left = tree.flatten(state.live)["adapters/layers/attention/q_proj/kernel/e"].sum(-1)
  assert left[0] != left[1]


def test_the_schedule_is_cubic():
  budget = Budget(target_r=2, tinit=2, tfinal=3, deltaT=2)
  kept = ranks.schedule(budget, 70, 28, STEPS)
  found = {i: n for i, n in enumerate(kept.tolist()) if n >= 0}
  assert found == {4: 47, 6: 35, 8: 29, 10: 28, 11: 28}
  # The last allocation comes at its time, whatever deltaT.
  assert ranks.schedule(Budget(2, 0, 3, 4), 70, 28, STEPS)[11] == 28


def test_the_penalty_is_that_of_peft(base):
  directory, model, params = base
  theirs = _theirs(directory)
  for name, parameter in theirs.named_parameters():
    if "lora_" in name:
      parameter.data += 0.3 * torch.randn_like(parameter)
  adapters = _of_peft(
    theirs, model, peft.attach([RULE], params, KEY), lambda p: p.detach().numpy().copy()
  )
  tokens = torch.arange(12).reshape(2, 6)
  config = theirs.peft_config["default"]
  losses = []
  for weight in (0.5, 0.0):
    config.orth_reg_weight = weight
    losses.append(theirs.base_model(tokens, labels=tokens).loss)
  (losses[0] - losses[1]).backward()
  trainable, frozen = _split(adapters)
  penalty, slopes = jax.jit(jax.value_and_grad(peft.penalty))(trainable)
  np.testing.assert_allclose(penalty, (losses[0] - losses[1]).item(), rtol=1e-5)
  wanted = _of_peft(theirs, model, adapters, lambda p: p.grad.numpy())
  for path, slope in tree.flatten(slopes["adapters"]).items():
    np.testing.assert_allclose(slope, tree.flatten(wanted)[path], atol=1e-6, err_msg=path)
  assert peft.penalty(frozen) is None
  assert (
    peft.penalty(_split(peft.attach([RULE | {"orth_reg_weight": 0.0}], params, KEY))[0]) is None
  )


def test_files_hold_the_ranks_that_are_left(base, tmp_path):
  """Of unequal ranks, one of them none; through PEFT's own writing, too."""
  directory, model, params = base
  adapters = peft.attach([RULE | {"init_r": 7}], params, KEY)
  adapters = tree.map_with_path(
    lambda path, leaf: (
      jax.random.normal(KEY, leaf.shape) * (jnp.arange(7) % 3 < jnp.arange(2)[:, None] * 2)
      if path.endswith("/e")
      else 10 * leaf
      if path.endswith(("/a", "/b"))
      else leaf
    ),
    adapters,
  )
  modules = _modules(model)
  peft.save(tmp_path / "ours", adapters, modules)
  tokens = np.arange(12).reshape(2, 6)
  apply = jax.jit(model.clone(unroll=1).apply)
  want = apply({"params": params, "adapters": adapters}, tokens)
  assert np.abs(want - apply({"params": params}, tokens)).max() > 1e-2

  def theirs(adapter):
    read = hf_peft.PeftModel.from_pretrained(
      transformers.AutoModelForCausalLM.from_pretrained(directory), adapter
    ).eval()
    with torch.no_grad():
      return read, read(torch.tensor(tokens)).logits.numpy()

  read, logits = theirs(tmp_path / "ours")
  np.testing.assert_allclose(logits, want, atol=1e-4)
  module = read.base_model.model.model.layers[1].mlp.up_proj
  assert module.lora_E["default"].shape == (5, 1) and float(module.ranknum["default"]) == 7
  read.save_pretrained(tmp_path / "theirs")
  for name in ("ours", "theirs"):
    again = peft.load(tmp_path / name, params, modules)
    got = apply({"params": params, "adapters": again}, tokens)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"init_r": 40}, "init_r 40 at"),
    ({"target_r": 6}, "target_r 6 at .* of 5"),
    ({"tfinal": 0}, "with deltaT 2 ranks grow back"),
    ({"beta1": 1.0}, "beta1 1.0 and beta2 0.7 lie between"),
    ({"tinit": -1}, "are not negative"),
  ],
)
def test_arguments_that_cannot_be(base, change, told):
  with pytest.raises(ValueError, match=told):
    peft.attach([RULE | change], base[2], KEY)


def test_budgets_that_cannot_be(base):
  _, _, params = base
  trainable, frozen = _split(peft.attach([RULE], params, KEY))
  with pytest.raises(ValueError, match="tinit 2 and tfinal 3 leave none of 5 steps"):
    peft.allocation(trainable, 5)
  assert peft.allocation(frozen, 5) is None
  rules = [RULE | {"target": "layers/mlp/.*kernel", "deltaT": 1}, RULE]
  with pytest.raises(ValueError, match="one budget among all matrices; 'adapters/layers"):
    peft.allocation(_split(peft.attach(rules, params, KEY))[0], STEPS)
