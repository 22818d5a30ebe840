"""Mixtures of experts against `transformers`, a product an expert, and each other's forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from research import models, objectives, peft
from research.core import grouped, tree
from research.core.config import ConfigError
from research.losses import routing
from research.models.unrolled import unroll, unstack
from research.nn.moe import ROUTING

SHAPE = {
  "model_type": "qwen3_moe",
  "vocab_size": 61,
  "hidden_size": 32,
  "moe_intermediate_size": 24,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 8,
  "max_position_embeddings": 64,
  "num_experts": 6,
  "num_experts_per_tok": 2,
  "norm_topk_prob": True,
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 61, (3, 16)), jnp.int32)
REAL = np.arange(16) < np.array([[16], [11], [4]])
RULE = {"target": "layers/mlp/.*/kernel", "name": "lora", "rank": 2, "alpha": 6}


@pytest.fixture(scope="module")
def model():
  return models.build(SHAPE)


@pytest.fixture(scope="module")
def variables(model):
  params = jax.jit(model.init)(jax.random.key(0), TOKENS)
  assert set(params) == {"params"}  # what routers tell is nothing to start from
  noise = lambda x: x + 0.2 * jax.random.normal(jax.random.key(1), x.shape)  # noqa: E731
  params = jax.tree.map(noise, params["params"])
  adapters = jax.tree.map(lambda x: x + 0.1, peft.attach([RULE], params, jax.random.key(2)))
  return {"params": params, "adapters": adapters}


@jax.jit
def _grouped(x, kernels, sizes, g):
  y, back = jax.vjp(lambda x, k: grouped.grouped(x, k, sizes), x, kernels)
  # What runs on other machines.
  ragged = (
    grouped._product_ragged(x, kernels, sizes, False),
    grouped._product_ragged(g, kernels, sizes, True),
    grouped._outer_ragged(x, g, sizes),
  )
  return y, *back(g.astype(jnp.float32)), ragged


@pytest.mark.parametrize("sizes", [[0, 5, 20, 12, 3], [0, 0, 40, 0, 0], [1, 0, 37, 1, 1]])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_grouped_products_are_those_of_each_group(sizes, dtype):
  rng = np.random.default_rng(0)
  rows = sum(sizes)
  x, g = (rng.normal(size=(rows, n)) for n in (6, 5))
  kernels = rng.normal(size=(len(sizes), 6, 5))
  x, g, kernels = (jnp.asarray(a, dtype) for a in (x, g, kernels))
  wide = [np.asarray(a, np.float64) for a in (x, g, kernels)]
  parts = np.split(np.arange(rows), np.cumsum(sizes)[:-1])
  want = np.concatenate([wide[0][p] @ wide[2][e] for e, p in enumerate(parts)])
  want_dx = np.concatenate([wide[1][p] @ wide[2][e].T for e, p in enumerate(parts)])
  want_dk = np.stack([wide[0][p].T @ wide[1][p] for p in parts])
  y, dx, dk, ragged = _grouped(x, kernels, jnp.asarray(sizes), g)
  assert (y.dtype, dx.dtype, dk.dtype) == (jnp.float32, dtype, dtype)
  rounded = 1e-2 if dtype == jnp.bfloat16 else 1e-6  # of gradients, to the operands' type

  def check(found, want, rtol):
    np.testing.assert_allclose(np.asarray(found, np.float64), want, rtol=rtol, atol=1e-5)

  check(y, want, 1e-6)
  check(dx, want_dx, rounded)
  check(dk, want_dk, rounded)
  for found, expected in zip(ragged, (want, want_dx, want_dk), strict=True):
    check(found, expected, 1e-6)


@pytest.mark.parametrize("rows,groups", [(4096, 8), (4096, 64), (16, 128), (8, 8)])
def test_the_work_is_that_of_the_rows(rows, groups):
  """Rows multiplied, blocks' ends included: at most twice the rows, and 8 a group in use."""
  sizes = np.bincount(np.random.default_rng(0).integers(0, groups, rows), minlength=groups)
  block = grouped._block(rows, groups)
  count = lambda group, first, end, out: out + 1  # noqa: E731
  blocks = int(grouped._over_blocks(jnp.asarray(sizes), block, count, jnp.int32(0)))
  assert blocks == sum(-(-n // block) for n in sizes)
  assert blocks * block <= 2 * rows + 8 * np.count_nonzero(sizes)


@partial(jax.jit, static_argnums=0)
def _with_logits(model, variables, tokens):
  segments = REAL.astype(np.int32)
  out, told = model.apply(variables, tokens, None, segments, mutable=[ROUTING])
  return out, told[ROUTING]["layers"]["mlp"]["logits"]


@pytest.fixture(scope="module")
def theirs(model, variables, tmp_path_factory):
  """The base in torch, with its routers' logits a layer, balance over real tokens, and grads."""
  directory = tmp_path_factory.mktemp("moe")
  models.save(directory, model, variables["params"])
  found = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
  out = found(
    torch.tensor(np.asarray(TOKENS, np.int64)),
    attention_mask=torch.tensor(REAL.astype(np.int64)),
    output_router_logits=True,
  )
  gradients = torch.autograd.grad(out.aux_loss, [m.mlp.gate.weight for m in found.model.layers])
  return out, np.stack([g.numpy().T for g in gradients])


def test_router_logits_balance_and_its_gradient_agree_with_transformers(model, variables, theirs):
  out, gradients = theirs
  params = variables["params"]
  _, logits = _with_logits(model, {"params": params}, TOKENS)
  for layer, expected in enumerate(out.router_logits):
    expected = expected.detach().numpy().reshape(3, 16, 6)
    np.testing.assert_allclose(logits[layer][REAL], expected[REAL], atol=1e-4)

  def balance(router):
    mlp = {**params["layers"]["mlp"], "router": {"kernel": router}}
    changed = {**params, "layers": {**params["layers"], "mlp": mlp}}
    _, logits = _with_logits(model, {"params": changed}, TOKENS)
    return routing.balance(logits, 2, REAL)

  router = params["layers"]["mlp"]["router"]["kernel"]
  found, ours = jax.jit(jax.value_and_grad(balance))(router)
  np.testing.assert_allclose(found, out.aux_loss.detach(), rtol=1e-5)
  np.testing.assert_allclose(ours, gradients, atol=1e-4)
  flat = torch.tensor(np.asarray(logits).reshape(2, -1, 6))
  unmasked = load_balancing_loss_func(tuple(flat), 6, 2)
  everything = routing.balance(logits, 2, np.ones_like(REAL))
  np.testing.assert_allclose(everything, unmasked, rtol=1e-5)


def test_z_is_the_weighted_mean_square_and_padding_counts_nothing():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 3, 16, 6)).astype(np.float32)
  weights = rng.random((3, 16)).astype(np.float32) * REAL
  squares = np.log(np.exp(logits.astype(np.float64)).sum(-1)) ** 2
  want = (squares.mean(0) * weights).sum()
  np.testing.assert_allclose(routing.z_sum(logits, weights), want, rtol=1e-5)
  other = np.where(REAL[None, :, :, None], logits, 9 * logits)
  np.testing.assert_allclose(routing.z_sum(other, weights), want, rtol=1e-5)
  np.testing.assert_allclose(
    routing.balance(other, 2, REAL), routing.balance(logits, 2, REAL), rtol=1e-6
  )
  assert routing.balance(logits, 2, np.zeros_like(REAL)) == 0
  even = np.zeros((1, 1, 6, 6), np.float32)
  np.fill_diagonal(even[0, 0], 1e-3)  # each expert has one token
  np.testing.assert_allclose(routing.balance(even, 1, np.ones((1, 6))), 1.0, rtol=1e-5)


def _batch():
  return {
    "tokens": TOKENS,
    "targets": jnp.roll(TOKENS, -1, axis=1),
    "weights": jnp.asarray(REAL, jnp.float32).at[0, :5].set(0),
    "segments": REAL.astype(np.int32),
    "positions": np.broadcast_to(np.arange(16), TOKENS.shape),
  }


def test_the_objective_adds_them_in_training(model, variables):
  batch, key = _batch(), jax.random.key(0)
  run = jax.jit(lambda loss, *args: loss(model, variables, batch, *args, 0), static_argnums=0)
  loss = objectives.build({"name": "causal", "router_balance": 0.1, "router_z": 0.01})
  total, weight, metrics = run(loss, None)
  more, same, _ = run(loss, key)
  out, logits = _with_logits(model, variables, TOKENS)
  own = jnp.take_along_axis(jax.nn.log_softmax(out), batch["targets"][..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(total, -jnp.sum(own * batch["weights"]), rtol=1e-5)  # the loss alone
  balance = routing.balance(logits, 2, REAL)
  z = routing.z_sum(logits, batch["weights"])
  assert weight == same == batch["weights"].sum()
  np.testing.assert_allclose(metrics["router/balance"], (balance * weight, weight), rtol=1e-5)
  np.testing.assert_allclose(metrics["router/z"], (z, weight), rtol=1e-5)
  np.testing.assert_allclose(more - total, 0.1 * balance * weight + 0.01 * z, rtol=1e-3)


def test_router_losses_need_experts():
  plain = models.build({**SHAPE, "model_type": "qwen3", "intermediate_size": 8})
  loss = objectives.build({"name": "causal", "router_z": 0.1})
  with pytest.raises(ConfigError, match="need a mixture of experts"):
    jax.eval_shape(
      lambda key: loss(plain, plain.init(key, TOKENS), _batch(), key, 0), jax.random.key(0)
    )


def test_experts_lora_is_the_merged_kernel(model, variables):
  """Factors an expert; `merge`, a product of stacks, is the oracle. Dropout has its own test."""
  expected, _ = _with_logits(model, variables, TOKENS)
  merged = peft.merge(variables["params"], variables["adapters"])
  found, _ = _with_logits(model, {"params": merged}, TOKENS)
  np.testing.assert_allclose(found, expected, atol=2e-5)
  without, _ = _with_logits(model, {"params": variables["params"]}, TOKENS)
  assert np.abs(without - expected).max() > 0.1
  # Ranks by layer and expert.
  pattern = {"layers/1/mlp/experts/3/up_proj/kernel": 1}
  adapters = peft.attach(
    [{**RULE, "rank_pattern": pattern}], variables["params"], jax.random.key(2)
  )
  up = tree.flatten(adapters, is_leaf=lambda x: hasattr(x, "ranks"))[
    "layers/mlp/experts/up_proj/kernel"
  ]
  assert up.ranks == (2,) * 9 + (1,) + (2,) * 2
  assert up.scale.shape == (2, 6) and not up.a[1, 3, :, 1].any()
  with pytest.raises(ValueError, match="PEFT knows no module for 'layers/mlp/experts"):
    peft.save("unused", adapters, {})


def test_forms_of_the_loop_over_layers_agree(model, variables):
  """Scanned, unrolled for training and for generation, rematerialized: outputs and gradients."""

  def loss(model, adapters, params):
    out, logits = _with_logits(model, {"params": params, "adapters": adapters}, TOKENS)
    return jnp.square(out).mean() + routing.balance(logits, 2, REAL)

  grad = jax.jit(jax.value_and_grad(loss, 1), static_argnums=0)
  expected = grad(model, variables["adapters"], variables["params"])
  split = unstack(variables)
  scanned = model.clone(unroll=1, remat="products")
  for other, params in ((model.clone(remat=True), split), (scanned, variables)):
    found = grad(other, variables["adapters"], params["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


def test_generation_form_reads_a_cache_token_by_token(model, variables):
  expected = jax.jit(model.apply)(variables, TOKENS)
  flat, split = unroll(model, variables)
  step = jax.jit(lambda tokens, cache: flat.apply(split, tokens, cache=cache))
  out, cache = step(TOKENS[:, :12], flat.init_cache(3, 16))
  found = [out]
  for i in range(12, 16):
    out, cache = step(TOKENS[:, i : i + 1], cache)
    found.append(out)
  np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=2e-5)


def test_layers_without_experts_and_noise_are_refused():
  with pytest.raises(ValueError, match=r"mlp_only_layers=\[1\].* every layer"):
    models.build({**SHAPE, "mlp_only_layers": [1]})
  with pytest.raises(ValueError, match="1 to 6 experts, not to 7"):
    models.build({**SHAPE, "num_experts_per_tok": 7})
  mixtral = {**SHAPE, "model_type": "mixtral", "num_local_experts": 4, "router_jitter_noise": 0.1}
  with pytest.raises(ValueError, match="router_jitter_noise is not supported"):
    models.build(mixtral)
