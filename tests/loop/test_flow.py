"""Norms of gradients by layer, and when a run says that they are uneven."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research import models, objectives, peft
from research.core import tree
from research.loop import flow, step
from research.loop import state as state_lib
from research.optim import schedules

LLAMA = {
  "model_type": "llama",
  "vocab_size": 19,
  "hidden_size": 8,
  "intermediate_size": 8,
  "num_hidden_layers": 3,
  "num_attention_heads": 2,
  "max_position_embeddings": 32,
  "tie_word_embeddings": True,
}


def test_of_a_step_with_adapters_and_parameters():
  """Against the gradient that plain descent takes away."""
  model = models.build(LLAMA)
  model = dataclasses.replace(model, dtype=jnp.float32)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  rules = [
    {"target": ".*q_proj/kernel", "name": "lora", "rank": 2},
    {"name": "prefix", "tokens": 2, "projection": True, "hidden_size": 4},
  ]
  adapters = peft.attach(rules, params, jax.random.key(1))
  adapters = jax.tree.map(
    lambda leaf: leaf + 0.1 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, adapters
  )
  variables = {"params": params, "adapters": adapters}
  of_adapters = {f"adapters/{path}" for path in peft.trainable_paths(adapters)}
  trainable, frozen = tree.partition(
    variables, lambda path, _: path in of_adapters or path.startswith(("params/embed", "params/l"))
  )
  rng = np.random.default_rng(0)
  ones = np.ones((2, 8), np.int32)
  batch = {
    "tokens": rng.integers(0, 19, (2, 8), np.int32),
    "targets": rng.integers(0, 19, (2, 8), np.int32),
    "weights": ones.astype(np.float32),
    "segments": ones,
    "positions": ones * np.arange(8, dtype=np.int32),
  }
  made = step.make_step(
    model,
    objectives.build({"name": "causal"}),
    optax.sgd(1.0),
    schedules.linear(1.0, 10),
    accumulate_steps=1,
    seed=0,
    layer_gradients=True,
  )
  state = state_lib._initial(trainable, optax.sgd(1.0))
  after, metrics = jax.jit(made)(state, frozen, batch)
  taken = jax.tree.map(lambda a, b: np.asarray(a - b), trainable, after.trainable)
  squares = {"outside": 0.0, 0: 0.0, 1: 0.0, 2: 0.0}
  for path, leaf in tree.flatten(taken).items():
    if "/layers/" in path and "attention/kv" not in path:
      for layer in range(3):
        squares[layer] += float((leaf[layer] ** 2).sum())
    else:  # a network that makes all layers' prefix is in none of them
      squares["outside"] += float((leaf**2).sum())
  found = flow.named(jax.device_get(metrics["gradients"]))
  expected = {f"gradients/layers/{i}": squares[i] ** 0.5 for i in range(3)}
  expected["gradients/outside"] = squares["outside"] ** 0.5
  assert found == pytest.approx(expected, rel=1e-3)
  assert all(found.values())
  total = sum(value**2 for value in found.values()) ** 0.5
  assert total == pytest.approx(float(metrics["gradient_norm"]), rel=1e-5)


def test_stacks_have_names_of_their_own():
  gradients = {
    "params": {
      "encoder": {"layers": {"mlp": {"kernel": jnp.full((2, 4), 0.5)}}},
      "decoder": {"layers": {"mlp": {"kernel": jnp.full((3, 1), 2.0)}}},
      "lm_head": {"kernel": None},
    }
  }
  found = flow.named(jax.device_get(flow.norms(gradients)))
  encoder = {f"gradients/encoder/layers/{i}": 1.0 for i in range(2)}
  decoder = {f"gradients/decoder/layers/{i}": 2.0 for i in range(3)}
  assert found == {"gradients/outside": 0.0} | encoder | decoder


def _notes(norms, steps=60, stack="layers"):
  """What is said of `steps` steps, each with these norms of layers and noise."""
  uneven, rng = flow.Uneven(), np.random.default_rng(0)
  found = []
  for i in range(steps):
    noise = rng.uniform(0.8, 1.25, len(norms))
    means = {f"gradients/{stack}/{k}": float(n) for k, n in enumerate(norms * noise)}
    found.append((i, uneven({"loss": 1.0, "gradients/outside": 1e9} | means)))
  return [(i, note) for i, note in found if note]


@pytest.mark.parametrize(
  ("norm", "kind"), [(5e-3, "vanishes"), (0.0, "vanishes"), (2e2, "explodes")]
)
def test_an_uneven_layer_is_told_once(norm, kind):
  ((step, note),) = _notes(np.array([1.0, 1.0, norm, 1.0]), stack="decoder/layers")
  assert step == 19 and f"the gradient of decoder/layers/2 {kind}" in note


def test_layers_that_are_alike_are_not_told():
  assert _notes(np.array([0.1, 1.0, 5.0, 1.0])) == []
  assert _notes(np.zeros(4)) == []
  assert flow.Uneven()({"loss": 1.0}) is None


@pytest.mark.parametrize("bad", [None, float("nan")])  # as a file has it, and as a step
def test_steps_that_are_not_finite_do_not_count(bad):
  uneven = flow.Uneven()
  for _ in range(60):
    assert uneven({"gradients/layers/0": 1.0, "gradients/layers/1": bad}) is None
