"""Stacks whose layers are held each in its own way: against kernels rounded one by one by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import generation, models, peft, quant
from research.core import matrix, tree
from research.core.moments import Moments
from research.models.unrolled import restack, unstack
from research.quant import qarray
from research.quant.scheme import Scheme

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 61, (2, 9)), jnp.int32)
SHAPE = {"vocab_size": 61, "num_hidden_layers": 4, "num_attention_heads": 4}
SHAPES = {
  "llama": {**SHAPE, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64},
  "bert": {**SHAPE, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64},
}
KERNELS = "layers/.*_proj/kernel"
NF4 = Scheme("nf4", group=16, scales="double")
INT3 = Scheme("int3", group=16, symmetric=False)
RULES = (
  {"target": "layers/(0|3)/attention/.*", "kind": "none"},
  {"target": "layers/1/mlp/.*", "kind": "int3", "group": 16, "symmetric": False},
  {"target": KERNELS, "kind": "nf4", "group": 16, "scales": "double"},
)
# What those say, layer by layer.
SAID = {"attention": (None, NF4, NF4, None), "mlp": (NF4, INT3, NF4, NF4)}


def _by_hand(path, stack):
  """A stack of kernels as arrays, each layer rounded by itself."""
  each = SAID[path.split("/")[1]]
  rounded = [
    kernel if scheme is None else qarray.quantize(kernel, scheme).astype(jnp.float32)
    for kernel, scheme in zip(stack, each, strict=True)
  ]
  return jnp.stack(rounded)


def _built(family):
  model = models.build({"model_type": family, **SHAPES[family]}).clone(unroll=1)
  params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)
  plain = {
    path: _by_hand(path, leaf) if "_proj/kernel" in path else leaf
    for path, leaf in tree.flatten(params).items()
  }
  return model, params, tree.unflatten(plain)


@pytest.fixture(scope="module")
def llama():
  """A model, its parameters, those rounded by hand, and those in few bits."""
  model, params, plain = _built("llama")
  return model, params, plain, quant.quantize(params, RULES)


@pytest.fixture(scope="module")
def apply(llama):
  return jax.jit(llama[0].apply)


def test_layers_take_their_own_rules(llama):
  _, params, plain, held = llama
  flat = matrix.flatten(held)
  for path, leaf in flat.items():
    if "_proj/kernel" not in path:
      assert isinstance(leaf, jax.Array)
      continue
    assert leaf.schemes == SAID[path.split("/")[1]]
    assert (leaf.shape, leaf.dtype) == (tree.flatten(params)[path].shape, jnp.float32)
  jax.tree.map(np.testing.assert_array_equal, quant.dequantize(held), plain)
  count = {"attention": 4 * 32 * 32, "mlp": 3 * 32 * 48}  # numbers of a layer
  # Double scales take a byte a group, a number a kernel of 96 groups or fewer, and their mean.
  taken = 2 * 4 * count["attention"] + 2 * (count["attention"] * 9 / 16 + 4 * 8)
  taken += 3 * (count["mlp"] * 9 / 16 + 3 * 8) + count["mlp"] * (3 / 8 + 5 / 16)
  dense = sum(leaf.nbytes for path, leaf in flat.items() if "_proj/kernel" not in path)
  assert quant.size(held) == (quant.policy.Size(int(taken) + dense, 4 * matrix.count(params)))


def test_where_all_layers_are_alike_there_is_one_stack(llama):
  params = llama[1]
  rules = ({**RULES[2], "target": "layers/[0-3]/.*"},)
  found, meant = quant.quantize(params, rules), quant.quantize(params, RULES[2:])
  assert jax.tree.structure(found) == jax.tree.structure(meant)
  assert isinstance(matrix.flatten(found)["layers/mlp/up_proj/kernel"], quant.QArray)
  jax.tree.map(np.testing.assert_array_equal, found, meant)


def test_logits_are_those_of_the_numbers(llama, apply):
  _, _, plain, held = llama
  expected = apply({"params": plain}, TOKENS)
  np.testing.assert_allclose(apply({"params": held}, TOKENS), expected, atol=2e-5)
  split = unstack({"params": held})
  np.testing.assert_allclose(apply(split, TOKENS), expected, atol=2e-5)
  back = restack(split)["params"]
  assert jax.tree.structure(back) == jax.tree.structure(held)
  assert np.abs(expected - apply({"params": llama[1]}, TOKENS)).max() > 0.05


def test_an_encoder_sees_it_too():
  model, params, plain = _built("bert")
  run = jax.jit(model.apply)
  found, expected = (
    run({"params": each}, TOKENS) for each in (quant.quantize(params, RULES), plain)
  )
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_lora_learns_on_it_as_on_the_numbers(llama):
  model, _, plain, held = llama
  rule = {"name": "lora", "target": KERNELS, "rank": 2}
  adapters = peft.attach((rule,), held, jax.random.key(2))

  @jax.jit
  def both(params):
    def loss(adapters):
      variables = {"params": params, "adapters": adapters}
      return jnp.mean(jnp.square(model.apply(variables, TOKENS)))

    return jax.value_and_grad(loss)(adapters)

  found, wanted = both(held), both(plain)
  assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted[1])) > 1e-2
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), found, wanted)


def test_scales_that_trained_leave_as_they_acted(llama):
  rules = ({**RULES[1], "scales": "float16"}, {**RULES[1], "target": KERNELS, "scales": "bfloat16"})
  held = quant.quantize(llama[1], rules)
  wide = tree.map_with_path(
    lambda path, leaf: leaf.astype(jnp.float32) if path.endswith("/scale") else leaf, held
  )
  back = quant.hold(wide)
  assert jax.tree.structure(back) == jax.tree.structure(held)
  assert isinstance(matrix.flatten(back)["layers/mlp/up_proj/kernel"], quant.Mixed)
  for path, leaf in tree.flatten(held).items():
    found = tree.flatten(back)[path]
    assert found.dtype == leaf.dtype
    np.testing.assert_array_equal(found, leaf)


def test_a_start_by_what_rounding_took(llama):
  _, params, plain, held = llama
  rule = {"name": "lora", "target": "layers/mlp/.*", "rank": 4, "start": "loftq"}
  new = peft.moved(peft.attach((rule,), params, jax.random.key(2)), held, params)
  for path, node in peft.sites(new):
    rest = tree.flatten(params)[path] - tree.flatten(plain)[path]
    u, values, v = np.linalg.svd(rest, full_matrices=False)
    nearest = (u[..., :4] * values[:, None, :4]) @ v[:, :4]
    product = (node.a @ node.b) * node.scale[:, None, None]
    np.testing.assert_allclose(product, nearest, atol=1e-4, err_msg=path)


@pytest.mark.parametrize("rules", [RULES, RULES[2:]])
def test_what_projections_read_is_measured_on_it(llama, rules):
  """In few bits, whether layers differ or not."""
  model, params, _, _ = llama
  ones = jnp.ones_like(TOKENS)
  batch = {"tokens": TOKENS, "segments": ones, "positions": jnp.cumsum(ones, axis=1) - 1}
  path, held = "layers/mlp/down_proj/kernel", quant.quantize(params, rules)
  found, wanted = (
    models.watched(model, {"params": each}, [path], [batch], Moments.none)[path].products
    for each in (held, quant.dequantize(held))
  )
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_merging_makes_arrays_of_the_numbers(llama, method):
  _, params, plain, held = llama
  rules = ({"target": "layers/mlp/.*/kernel", "name": method, "rank": 2},)
  new = peft.moved(peft.attach(rules, params, jax.random.key(2)), held, params)
  adapters = jax.tree.map(lambda x: x + 0.1, new)
  merged, wanted = peft.merge(held, adapters), tree.flatten(peft.merge(plain, adapters))
  for path, kernel in matrix.flatten(merged).items():
    if path.startswith("layers/mlp"):
      np.testing.assert_array_equal(kernel, wanted[path])
  assert isinstance(matrix.flatten(merged)["layers/attention/q_proj/kernel"], quant.Mixed)
  back = peft.unmerge(merged, peft.covered(held, adapters))
  assert jax.tree.structure(back) == jax.tree.structure(held)


@pytest.mark.parametrize("unrolled", [True, False])
def test_generation_writes_what_the_numbers_write(llama, unrolled):
  """With an adapter, through a cache of an array a layer and one of stacks."""
  model, _, plain, held = llama
  rules = ({"target": KERNELS, "name": "lora", "rank": 2},)
  adapters = jax.tree.map(lambda x: x + 0.1, peft.attach(rules, held, jax.random.key(2)))
  greedy = generation.Sampler(temperature=0.0)

  def write(params):
    variables, prompts = {"params": params, "adapters": adapters}, [[1, 2, 3], [4]]
    told = {"max_new_tokens": 6, "eos_ids": (), "unrolled": unrolled}
    done = generation.generate(model, variables, prompts, greedy, **told)
    return [completion.tokens for completion in done]

  assert write(held) == write(plain)


def test_a_draft_takes_some_of_the_layers(llama, apply):
  model, _, plain, held = llama
  drafts = [generation.drop_layers(model, {"params": each}, (1, 3)) for each in (held, plain)]
  kernel = drafts[0].variables["params"]["layers"]["mlp"]["up_proj"]["kernel"]
  assert kernel.schemes == (INT3, NF4)
  found, expected = (jax.jit(draft.model.apply)(draft.variables, TOKENS) for draft in drafts)
  np.testing.assert_allclose(found, expected, atol=2e-5)


WRONG = {
  "no such layer": (
    lambda params, held: quant.quantize(params, ({**RULES[2], "target": "layers/4/.*"},)),
    "rule 'layers/4/.\\*' matches none",
  ),
  "already": (lambda params, held: quant.quantize(held, RULES), "is held in nf4 already"),
  "several": (
    lambda params, held: quant.quantize(held, ({**RULES[2], "target": "layers/mlp/up_proj/.*"},)),
    "'layers/mlp/up_proj/kernel' is held in nf4 and int3 already",
  ),
  "grid": (lambda params, held: quant.train(params, RULES), "on a grid, and layers of it differ"),
  "groups": (
    lambda params, held: quant.quantize(params, ({**RULES[1], "group": 32}, RULES[2])),
    "layers/mlp/down_proj/kernel: a group of 32 does not divide 48",
  ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be(llama, case):
  ask, message = WRONG[case]
  with pytest.raises(ValueError, match=message) as error:
    ask(llama[1], llama[3])
  assert "\n" not in str(error.value)
