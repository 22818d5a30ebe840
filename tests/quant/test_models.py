"""Models on a base in few bits: what they compute, learn, write and keep of memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import generation, models, objectives, peft, quant
from research.core import matrix, tree
from research.core.grouped import grouped
from research.data import packing
from research.data.examples import Example
from research.models.unrolled import unroll, unstack
from research.quant.scheme import Scheme

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 61, (2, 9)), jnp.int32)
SHAPE = {
  "vocab_size": 61,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
}
RULES = (
  {"target": "layers/attention/.*/kernel", "kind": "nf4", "group": 16, "scales": "double"},
  {"target": "layers/.*/kernel", "kind": "int4", "group": 16, "symmetric": False},
  {"target": "embed/embedding", "kind": "int8"},
)


def _initialized(config):
  model = models.build(config).clone(unroll=1)
  params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
  return model, jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params
  )


@pytest.fixture(scope="module")
def held():
  """A llama with a tied head, its parameters in few bits, and the same as arrays."""
  model, params = _initialized({"model_type": "llama", "tie_word_embeddings": True, **SHAPE})
  params = quant.quantize(params, RULES)
  return model, params, quant.dequantize(params)


def test_logits_are_those_of_the_numbers(held):
  model, params, plain = held
  apply = jax.jit(model.apply)
  found = apply({"params": params}, TOKENS)
  np.testing.assert_allclose(found, apply({"params": plain}, TOKENS), atol=2e-5)
  split = unstack({"params": params})
  np.testing.assert_allclose(jax.jit(model.apply)(split, TOKENS), found, atol=2e-5)


def test_experts_are_those_of_the_numbers():
  shape = {"num_local_experts": 3, "num_experts_per_tok": 2, **SHAPE}
  model, params = _initialized({"model_type": "mixtral", **shape})
  params = quant.quantize(
    params, ({"target": "layers/mlp/experts/.*", "kind": "int8", "group": 16},)
  )
  rules = ({"target": "layers/attention/q_proj/kernel", "name": "lora", "rank": 2},)
  adapters = jax.tree.map(lambda x: x + 0.1, peft.attach(rules, params, jax.random.key(2)))

  @jax.jit
  def both(params):
    def loss(adapters):
      return jnp.sum(jnp.sin(model.apply({"params": params, "adapters": adapters}, TOKENS)))

    return jax.value_and_grad(loss)(adapters)

  found, wanted = both(params), both(quant.dequantize(params))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, wanted)


def _learnt(held):
  """What of `held` learns, and `held` with that in place."""
  if isinstance(held, quant.Trained):
    return held.values, lambda values: held.replace(values=values)
  return held.scale.astype(jnp.float32), lambda scale: held.replace(scale=scale)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("trains", ["numbers", "scales"])
def test_experts_learn_as_plain_products_of_the_numbers(trains, dtype):
  """In a loop over layers, against a product of each row with its kernel."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(10, 32)), dtype)
  kernels = jnp.asarray(rng.normal(size=(2, 3, 32, 32)) / 8, jnp.float32)
  sizes, scheme = np.array([4, 0, 6]), Scheme("int4", group=16, scales="float16")
  held = quant.Trained(kernels, scheme)
  learnt, put = _learnt(held if trains == "numbers" else held.held())

  def by_groups(learnt):
    def layer(x, kernels):
      return jnp.sin(grouped(x, kernels, jnp.asarray(sizes))).astype(dtype), None

    return jnp.sum(jax.lax.scan(layer, x, put(learnt))[0].astype(jnp.float32))

  def by_rows(learnt):
    out = x
    for kernels in put(learnt).astype(dtype):
      each = kernels[np.repeat(np.arange(3), sizes)].astype(jnp.float32)
      out = jnp.sin(jnp.einsum("mi,mio->mo", out.astype(jnp.float32), each)).astype(dtype)
    return jnp.sum(out.astype(jnp.float32))

  found, wanted = (jax.jit(jax.grad(loss))(learnt) for loss in (by_groups, by_rows))
  rounded = 1e-5 if dtype == jnp.float32 else 2e-2  # of what goes into products
  assert np.any(wanted)
  np.testing.assert_allclose(found, wanted, atol=rounded * float(jnp.max(jnp.abs(wanted))))


AT_KERNELS = {"target": "layers/.*_proj/kernel"}
# All methods, in few programs: several act together, each at places of its own.
METHODS = {
  "lora, prefix, tokens": (
    {**AT_KERNELS, "name": "lora", "rank": 2},
    {"name": "prefix", "tokens": 2},
    {"name": "trainable_tokens", "tokens": [9, 2, 50]},
  ),
  "dora, bottleneck, p-tuning": (
    {**AT_KERNELS, "name": "dora", "rank": 2},
    {"name": "bottleneck", "size": 3},
    {"name": "p_tuning", "tokens": 3, "hidden_size": 5},
  ),
  "ia3, prompt": ({**AT_KERNELS, "name": "ia3"}, {"name": "prompt", "tokens": 3}),
  "vera, adalora": (
    {"target": "layers/attention/.*_proj/kernel", "name": "vera", "rank": 4},
    {"target": "layers/mlp/.*_proj/kernel", "name": "adalora", "init_r": 3, "target_r": 2},
  ),
}


def _after_steps(adapters):
  """As after training: nothing that trains is zero."""
  trained, rng = peft.trainable_paths(adapters), np.random.default_rng(3)

  def change(path, leaf):
    noise = 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
    return jnp.asarray(np.asarray(leaf) + noise) if path in trained else leaf

  return tree.map_with_path(change, adapters)


@pytest.mark.parametrize("method", METHODS)
def test_adapters_learn_on_it_as_on_the_numbers(held, method):
  model, params, plain = held
  adapters = _after_steps(peft.attach(METHODS[method], params, jax.random.key(2)))
  adapters = peft.moved(adapters, params, plain)
  lead = len(peft.virtual_ids(adapters))
  documents = [Example(np.asarray(row), np.ones(9, bool)).led_by(lead) for row in TOKENS]
  batch = packing.assemble([[each] for each in documents], 9 + lead, 0)
  objective = objectives.causal()

  @jax.jit
  def both(params):
    def loss(adapters):
      variables = peft.materialize({"params": params, "adapters": adapters})
      return objective(model, variables, batch, None, None)[0]

    return jax.value_and_grad(loss)(adapters)

  (loss, found), (expected, wanted) = both(params), both(plain)
  np.testing.assert_allclose(loss, expected, rtol=2e-5)
  found, wanted = tree.flatten(found), tree.flatten(wanted)
  for path in peft.trainable_paths(adapters):
    assert np.any(wanted[path]), path
    np.testing.assert_allclose(found[path], wanted[path], rtol=2e-3, atol=2e-4, err_msg=path)


def test_merging_makes_arrays_of_the_numbers(held):
  _, params, plain = held
  rules = ({"target": "layers/mlp/.*/kernel", "name": "lora", "rank": 2},)
  adapters = jax.tree.map(lambda x: x + 0.1, peft.attach(rules, params, jax.random.key(2)))
  merged, wanted = peft.merge(params, adapters), peft.merge(plain, adapters)
  for path in ("layers/mlp/up_proj/kernel", "layers/mlp/down_proj/kernel"):
    kernel = matrix.flatten(merged)[path]
    assert isinstance(kernel, jax.Array)
    np.testing.assert_array_equal(kernel, tree.flatten(wanted)[path])
  kept = peft.unmerge(merged, peft.covered(params, adapters))
  assert jax.tree.structure(kept) == jax.tree.structure(params)


def test_generation_writes_what_the_numbers_write(held):
  model, params, plain = held
  greedy = generation.Sampler(temperature=0.0)

  def write(params):
    done = generation.generate(
      model, {"params": params}, [[1, 2, 3], [4]], greedy, max_new_tokens=6, eos_ids=()
    )
    return [completion.tokens for completion in done]

  assert write(params) == write(plain)


def test_layers_are_sliced_where_they_are_unrolled(held):
  model, params, _ = held
  _, variables = unroll(model, {"params": params})
  kernel = variables["params"]["layers"]["mlp"]["up_proj"]["kernel"]
  assert kernel.codes.each[0].shape == (32 // 2, 64)
