"""The form with an array a layer against the stacks it was made from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models, peft
from research.core.dot import Transposed
from research.models.unrolled import restack, unroll, unstack

CONFIGS = {
  "llama": {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
  },
  "gpt2": {
    "model_type": "gpt2",
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
  },
  "gemma2": {
    "model_type": "gemma2",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "sliding_window": 4,
    "attn_logit_softcapping": 2.0,
  },
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 61, (3, 9)), jnp.int32)


@pytest.fixture(params=CONFIGS, scope="module")
def stacked(request):
  """A model, as a loop over its layers, and its variables, with adapters."""
  model = models.build(CONFIGS[request.param]).clone(unroll=1)
  params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)
  rules = [{"target": "layers/.*/kernel", "name": "lora", "rank": 2}]
  adapters = jax.tree.map(lambda x: x + 0.1, peft.attach(rules, params, jax.random.key(2)))
  return model, {"params": params, "adapters": adapters}


def _logits(model, variables):
  return jax.jit(model.apply)(variables, TOKENS)


def _through_cache(model, variables):
  """Logits of 6 tokens at once, then of each of the rest; row 1 is padded on the left."""
  positions = jnp.tile(jnp.arange(9), (3, 1)).at[1].add(-2)
  positions = jnp.maximum(positions, -1)
  apply = jax.jit(lambda *rest: model.apply(variables, *rest[:2], cache=rest[2]))
  out, cache = apply(TOKENS[:, :6], positions[:, :6], model.init_cache(3, 12))
  found = [out[:, 5:]]
  for i in range(6, 9):
    step = slice(i, i + 1)
    out, cache = apply(TOKENS[:, step], positions[:, step], cache)
    found.append(out)
  return np.concatenate(found, axis=1)


def test_same_logits(stacked):
  model, variables = stacked
  flat = unroll(model, variables)
  np.testing.assert_allclose(_logits(*flat), _logits(model, variables), atol=2e-5)
  expected = _through_cache(model, variables)
  assert np.abs(expected).max() > 1
  np.testing.assert_allclose(_through_cache(*flat), expected, atol=2e-5)


def test_bfloat16_kernels_are_transposed_and_the_logits_alike(stacked):
  model, variables = stacked
  model = model.clone(dtype=jnp.bfloat16)
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables["params"])
  flat, split = unroll(model, {"params": params})
  assert isinstance(split["params"]["layers"]["mlp"]["up_proj"]["kernel"].each[0], Transposed)
  expected = _logits(model, {"params": params})
  atol = 0.03 * np.abs(expected).max()
  np.testing.assert_allclose(_logits(flat, split), expected, atol=atol)
  np.testing.assert_allclose(
    _through_cache(flat, split), _through_cache(model, {"params": params}), atol=atol
  )


def test_without_adapters(stacked):
  model, variables = stacked
  bare = {"params": variables["params"]}
  np.testing.assert_allclose(_logits(*unroll(model, bare)), _logits(model, bare), atol=2e-5)


def test_training_form_has_the_same_gradients_and_goes_back(stacked):
  model, variables = stacked
  split = unstack(variables)

  def loss(model, adapters, params):
    return jnp.square(model.apply({"params": params, "adapters": adapters}, TOKENS)).mean()

  grad = jax.jit(jax.grad(loss, 1), static_argnums=0)
  expected = grad(model, variables["adapters"], variables["params"])
  for other in (model, model.clone(remat="attention")):
    found = grad(other, split["adapters"], split["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
  jax.tree.map(np.testing.assert_array_equal, restack(split), variables)


def test_dropout_follows_its_key(stacked):
  model, variables = stacked
  rule = {"target": "layers/.*/kernel", "name": "lora", "rank": 2, "dropout": 0.5}
  adapters = peft.attach([rule], variables["params"], jax.random.key(2))
  adapters = jax.tree.map(lambda x: x + 0.1, adapters)
  split = unstack({"params": variables["params"], "adapters": adapters})
  seen = [model.apply(split, TOKENS, rngs={"dropout": jax.random.key(i)}) for i in (0, 0, 1)]
  np.testing.assert_array_equal(seen[0], seen[1])
  assert np.abs(seen[0] - seen[2]).max() > 1e-3


def test_it_attends_as_the_model_was_told(stacked):
  model, variables = stacked
  told = model.clone(attention="splash")
  for straight, split in (unroll(told, variables), (told, unstack(variables))):
    with pytest.raises(ValueError, match="attention 'splash' cannot be"):
      jax.eval_shape(straight.apply, split, TOKENS)
