"""The causal objective against a plain softmax over the whole model, and its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models, objectives, peft
from research.core.config import ConfigError

SHAPE = {
  "model_type": "llama",
  "vocab_size": 37,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
}
LOSS = objectives.build({"name": "causal", "chunk_tokens": 7})


def _batch(seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, 37, (2, 9)).astype(np.int32)
  return {
    "tokens": tokens,
    "targets": np.roll(tokens, -1, axis=1),
    "weights": (rng.random((2, 9)) < 0.5).astype(np.float32),
    "segments": np.array([[1] * 9, [1] * 4 + [2] * 5], np.int32),
    "positions": np.array([np.arange(9), [*range(4), *range(5)]], np.int32),
  }


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model_and_variables(request):
  model = models.build(SHAPE | {"tie_word_embeddings": request.param})
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  variables = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), variables
  )
  rules = [{"target": ".*_proj/kernel|lm_head/kernel", "name": "lora", "rank": 2}]
  return model, variables | {"adapters": peft.attach(rules, variables["params"], jax.random.key(2))}


def _plain(model, variables, batch):
  logits = model.apply(variables, batch["tokens"], batch["positions"], batch["segments"])
  log_probs = jax.nn.log_softmax(logits)
  chosen = jnp.take_along_axis(log_probs, batch["targets"][..., None], -1)[..., 0]
  return -(chosen * batch["weights"]).sum()


def test_loss_and_gradients_of_parameters_and_adapters(model_and_variables):
  model, variables = model_and_variables
  batch = _batch()

  def ours(v):
    return LOSS(model, v, batch, None, 0)[0]

  got = jax.jit(jax.value_and_grad(ours))(variables)
  want = jax.jit(jax.value_and_grad(lambda v: _plain(model, v, batch)))(variables)

  def check(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

  # LoRA's scale is no parameter: its gradient is not computed.
  drop = lambda path, leaf: jnp.zeros_like(leaf) if "scale" in str(path[-1]) else leaf  # noqa: E731
  got, want = (jax.tree_util.tree_map_with_path(drop, tree) for tree in (got, want))
  jax.tree.map(check, got, want)


def test_weight_and_metrics(model_and_variables):
  model, variables = model_and_variables
  batch = _batch()
  total, weight, metrics = LOSS(model, variables, batch, None, 0)
  assert weight == batch["weights"].sum()
  assert metrics["loss"] == (total, weight)
  guesses = model.apply(variables, batch["tokens"], batch["positions"], batch["segments"])
  right = ((guesses.argmax(-1) == batch["targets"]) * batch["weights"]).sum()
  np.testing.assert_allclose(metrics["accuracy"][0], right, rtol=1e-6)


def test_metrics_of_each_task(model_and_variables):
  model, variables = model_and_variables
  batch = {**_batch(), "task": np.array([[1] * 9, [0] * 4 + [1] * 5], np.int32)}
  loss = objectives.build({"name": "causal", "chunk_tokens": 7}, ("a", "b", "none"))
  total, weight, metrics = loss(model, variables, batch, None, 0)
  assert (total, weight) == LOSS(model, variables, batch, None, 0)[:2]
  for name, number in (("a", 0), ("b", 1)):
    weights = batch["weights"] * (batch["task"] == number)
    alone, count, others = LOSS(model, variables, {**batch, "weights": weights}, None, 0)
    np.testing.assert_allclose(metrics[f"loss/{name}"], (alone, count), rtol=1e-5)
    np.testing.assert_allclose(metrics[f"accuracy/{name}"], others["accuracy"], rtol=1e-5)
  assert metrics["loss/none"] == (0, 0)


def test_unknown_objective():
  with pytest.raises(ConfigError, match="did you mean 'causal'"):
    objectives.build({"name": "casual"})


def test_a_prefix_is_seen_both_ways_and_what_follows_is_not(model_and_variables):
  model, variables = model_and_variables
  batch = _batch()
  batch["prefix"] = np.array([[4] * 9, [2] * 4 + [3] * 5], np.int32)

  @jax.jit
  def hidden(tokens):
    args = (tokens, batch["positions"], batch["segments"])
    return model.apply(variables, *args, prefix=batch["prefix"], method="hidden")

  # Who sees the token at `at`: everyone whose output changes with it.
  before = hidden(batch["tokens"])
  for row, at, seen_by in (
    (0, 3, range(9)),
    (0, 5, range(5, 9)),
    (1, 1, range(4)),
    (1, 6, [*range(4, 9)]),
    (1, 7, (7, 8)),
  ):
    tokens = batch["tokens"].copy()
    tokens[row, at] = (tokens[row, at] + 1) % 37
    changed = np.abs(hidden(tokens) - before).max(axis=-1)
    np.testing.assert_array_equal(np.argwhere(changed > 1e-6), [[row, i] for i in seen_by])
  # Without a prefix it is what it was, and the objective passes the prefix on.
  plain, none = _batch(), {**_batch(), "prefix": np.zeros((2, 9), np.int32)}
  loss = [LOSS(model, variables, b, None, 0)[0] for b in (plain, none, batch)]
  np.testing.assert_allclose(loss[0], loss[1], rtol=1e-6)
  assert abs(loss[2] - loss[0]) > 1e-4
