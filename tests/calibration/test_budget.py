"""Choosing kinds within a budget: against all combinations, and what each costs alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models, quant
from research.calibration import budget
from research.calibration.budget import Option
from research.core import matrix, tree
from research.quant.scheme import Scheme

LLAMA = {
  "model_type": "llama",
  "vocab_size": 60,
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
}
RULES = (
  {"target": "layers/mlp/down_proj/kernel", "kind": "none"},
  {"target": "layers/mlp/.*", "kind": ["int2", "int8"], "group": 16},
  {"target": "layers/attention/.*", "kind": ("int4", "int3"), "group": 8},
)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_choice_is_better(seed):
  rng = np.random.default_rng(seed)
  found = [
    Option(number, Scheme("int8"), float(rng.normal()), int(rng.integers(1, 50)))
    for number in range(5)
    for _ in range(4)
  ]
  every = list(itertools.product(*(found[at : at + 4] for at in range(0, 20, 4))))
  for limit in (60, 100, 150):
    allowed = [each for each in every if sum(o.bytes for o in each) <= limit]
    if not allowed:
      with pytest.raises(ValueError, match=f"and {limit} are given; give more"):
        budget.choose(found, limit)
      continue
    chosen = budget.choose(found, limit)
    assert sorted(chosen) == list(range(5))
    assert sum(option.bytes for option in chosen.values()) <= limit
    least = min(sum(o.nats for o in each) for each in allowed)
    assert sum(option.nats for option in chosen.values()) == pytest.approx(least)


def test_an_option_costs_what_rounding_it_alone_does():
  model = models.build(LLAMA)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  params = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, params)
  tokens = np.random.default_rng(0).integers(0, 60, (2, 13))
  weights = np.ones((2, 12), np.float32)
  weights[0, 5:] = 0
  batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
  batch["segments"] = np.ones_like(batch["tokens"])
  batch["positions"] = np.broadcast_to(np.arange(12), (2, 12))
  told = []
  found = budget.options(model, params, RULES, [batch], told.append)
  assert told == found
  assert [(o.rule, o.scheme.kind) for o in found] == [
    (1, "int2"), (1, "int8"), (2, "int4"), (2, "int3"),
  ]  # fmt: skip

  def loss(params):
    log_probs = jax.nn.log_softmax(model.apply({"params": params}, batch["tokens"]))
    own = np.take_along_axis(np.asarray(log_probs), batch["targets"][..., None], -1)[..., 0]
    return -(own * weights).sum() / weights.sum()

  held = quant.quantize(params, [{**RULES[0]}, {**RULES[1], "kind": "int2"}])
  np.testing.assert_allclose(found[0].nats, loss(held) - loss(params), atol=1e-5)
  kernels = [v for k, v in matrix.flatten(held).items() if "up_proj" in k or "gate_proj" in k]
  assert found[0].bytes == sum(map(tree.nbytes, kernels))  # and not those of the first rule
  assert 0 < abs(found[1].nats) < abs(found[0].nats) / 10  # of random tokens, up or down
  numbers = 2 * 2 * 16 * 32 + 2 * 4 * 16 * 16
  assert budget.bytes_of(params, RULES, 4) == numbers / 2
  closed = budget.closed(RULES, budget.choose(found, 1e9))
  assert [rule["kind"] for rule in closed][0] == "none"
  assert all(isinstance(rule["kind"], str) for rule in closed)


def test_mistakes():
  with pytest.raises(ValueError, match="kind 'int5' is unknown"):
    budget.open_rules([{"target": "x", "kind": ["int5"]}])
