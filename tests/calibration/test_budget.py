"""Choosing kinds within a budget: against all combinations, and what each costs alone."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import calibration, models, quant
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
    Option(number, None, Scheme("int8"), float(rng.normal()), int(rng.integers(1, 50)))
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
    assert [option.rule for option in chosen] == list(range(5))
    assert sum(option.bytes for option in chosen) <= limit
    least = min(sum(o.nats for o in each) for each in allowed)
    assert sum(option.nats for option in chosen) == pytest.approx(least)


@pytest.fixture(scope="module")
def world():
  """A model, its parameters, a batch, and the loss of the batch as a function of parameters."""
  model = models.build(LLAMA)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  params = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, params)
  tokens = np.random.default_rng(0).integers(0, 60, (2, 13))
  weights = np.ones((2, 12), np.float32)
  weights[0, 5:] = 0
  batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
  batch["segments"] = np.ones_like(batch["tokens"])
  batch["positions"] = np.broadcast_to(np.arange(12), (2, 12))
  apply = jax.jit(model.apply)

  def loss(params):
    log_probs = jax.nn.log_softmax(apply({"params": quant.dequantize(params)}, batch["tokens"]))
    own = np.take_along_axis(np.asarray(log_probs), batch["targets"][..., None], -1)[..., 0]
    return -(own * weights).sum() / weights.sum()

  return model, params, batch, loss


def test_an_option_costs_what_rounding_it_alone_does(world):
  model, params, batch, loss = world
  told = []
  found = budget.options(model, params, RULES, [batch], told.append)
  assert told == found
  assert [(o.rule, o.scheme.kind) for o in found] == [
    (1, "int2"), (1, "int8"), (2, "int4"), (2, "int3"),
  ]  # fmt: skip
  held = quant.quantize(params, [{**RULES[0]}, {**RULES[1], "kind": "int2"}])
  np.testing.assert_allclose(found[0].nats, loss(held) - loss(params), atol=1e-5)
  kernels = [v for k, v in matrix.flatten(held).items() if "up_proj" in k or "gate_proj" in k]
  assert found[0].bytes == sum(map(tree.nbytes, kernels))  # and not those of the first rule
  assert 0 < abs(found[1].nats) < abs(found[0].nats) / 10  # of random tokens, up or down
  numbers = 2 * 2 * 16 * 32 + 2 * 4 * 16 * 16
  assert budget.bytes_of(params, RULES, 4) == numbers / 2
  closed = budget.closed(RULES, params, budget.choose(found, 1e9))
  assert [rule["kind"] for rule in closed][0] == "none"
  assert all(isinstance(rule["kind"], str) for rule in closed)


EACH = (
  {"target": "layers/1/attention/.*", "kind": "int8", "group": 16},
  {"target": "layers/.*_proj/kernel", "kind": ("int2", "int4"), "group": 16, "each": "layer"},
  {"target": "(embed|lm_head)/.*", "kind": ("int2", "int8"), "group": 16},
)


def test_layers_are_chosen_one_by_one(world):
  """What each costs is that of a whole pass; the choice is the best of all there are."""
  model, params, batch, loss = world
  found = budget.options(model, params, EACH, [batch])
  assert sorted((o.rule, o.layer, o.scheme.kind) for o in found if o.layer is not None) == [
    (1, layer, kind) for layer in range(2) for kind in ("int2", "int4")
  ]  # fmt: skip
  before, inside = loss(params), {0: "layers/0/.*_proj/kernel", 1: "layers/1/mlp/.*"}
  for option in found:
    target = EACH[2]["target"] if option.layer is None else inside[option.layer]
    rule = {"target": target, "kind": option.scheme.kind, "group": 16}
    held = quant.quantize(params, [rule])
    np.testing.assert_allclose(option.nats, loss(held) - before, atol=1e-5)
    dense, now = quant.size(params).held, quant.size(held).held
    numbers = (dense - now + option.bytes) // 4  # those are in float32 otherwise
    sizes = {0: 4 * 16 * 16 + 3 * 16 * 32, 1: 3 * 16 * 32, None: 2 * 60 * 16}
    assert numbers == sizes[option.layer]
  limit = budget.bytes_of(params, EACH, 6)
  chosen = budget.choose(found, limit)
  groups = [[o for o in found if (o.rule, o.layer) == at] for at in ((1, 0), (1, 1), (2, None))]
  within = [each for each in itertools.product(*groups) if sum(o.bytes for o in each) <= limit]
  assert 1 < len(within) < 8
  best = min(within, key=lambda each: sum(o.nats for o in each))
  assert set(chosen) == set(best)
  held = matrix.flatten(quant.quantize(params, budget.closed(EACH, params, chosen)))
  kinds = {(o.rule, o.layer): o.scheme.kind for o in chosen}
  for path, leaf in held.items():
    if "_proj" in path:
      schemes = leaf.schemes if isinstance(leaf, quant.Mixed) else (leaf.scheme,) * 2
      first = "int8" if "attention" in path else kinds[1, 1]
      assert [scheme.kind for scheme in schemes] == [kinds[1, 0], first]
  assert held["lm_head/kernel"].scheme.kind == kinds[2, None]


def test_closed_rules_are_one_a_kind():
  shapes = {"layers": {"mlp": {"up_proj": {"kernel": jax.ShapeDtypeStruct((5, 8, 8), "float32")}}}}
  rule = {"target": "layers/[1-4]/.*", "kind": ["int2", "int4"], "group": 8, "each": "layer"}
  chosen = [Option(0, n, Scheme(kind), 0.0, 1) for n, kind in enumerate(("int4", "int2") * 2, 1)]
  assert budget.closed([rule], shapes, chosen) == [
    {"target": f"layers/({of})/(mlp/up_proj/kernel)", "kind": kind, "group": 8}
    for of, kind in (("1|3", "int4"), ("2|4", "int2"))
  ]
  assert budget.bytes_of(shapes, [rule], 4) == 4 * 8 * 8 / 2


def test_candidates_have_every_kind():
  """Beside the first of other rules; what is not open stays, and nothing asks for layers."""
  rules = [RULES[0], {**RULES[1], "each": "layer"}, RULES[2]]
  found = budget.candidates(rules)
  assert [[rule["kind"] for rule in each] for each in found] == [
    ["none", "int2", "int4"], ["none", "int8", "int4"],
    ["none", "int2", "int4"], ["none", "int2", "int3"],
  ]  # fmt: skip
  assert found[1][1] == {**RULES[1], "kind": "int8"}
  assert budget.candidates(RULES[:1]) == []


@pytest.mark.parametrize(("rows", "batches"), [(8, 2), (4, 4), (1, 16), (5, 4)])
def test_choices_are_measured_by_sixteen_rows(monkeypatch, rows, batches):
  """However many a batch has, as whole batches; all where there are fewer."""
  made = [{"tokens": np.full((rows, 3), number)} for number in range(20)]
  seen = []

  def options(model, params, rules, measured, told):
    seen.extend(measured)
    return [Option(0, None, Scheme("int8"), 0.0, 1)]

  monkeypatch.setattr(budget, "options", options)
  shapes = {"lm_head": {"kernel": np.zeros((8, 8))}}
  rules = [{"target": "lm_head/kernel", "kind": ["int8"]}]
  plan = calibration.Plan(rules, calibration.Nearest(), made, "float32", None, 8)
  settled = plan.settled(models.build(LLAMA), shapes, print)
  assert settled.rules == [{**rules[0], "kind": "int8"}] and not settled.bits
  assert seen == made[:batches]
  seen.clear()
  dataclasses.replace(plan, batches=made[:1]).settled(models.build(LLAMA), shapes, print)
  assert seen == made[:1]


MISTAKES = {
  "no kind": ({"kind": []}, "kind: a rule has an empty list of kinds"),
  "kind": ({"kind": ["int5"]}, "kind 'int5' is unknown"),
  "each": ({"kind": ["int2", "int4"], "each": "head"}, "each: 'head' of a rule: it is 'layer'"),
  "one kind": ({"kind": "int4", "each": "layer"}, "where there are several kinds"),
  "table": (
    {"target": "embed/.*", "kind": ["int8"], "each": "layer"},
    "for what layers have, which 'embed/embedding' is not",
  ),
  "taken": ({"target": "layers/0/.*", "kind": ["int8"]}, "rules before it have taken"),
  "group": ({"target": "embed/.*", "kind": ["int8"], "group": 5}, "embed/embedding.* 5 does not"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(world, case):
  model, params, batch, _ = world
  rule, message = MISTAKES[case]
  first = {"target": "layers/.*", "kind": "int8"}
  with pytest.raises(ValueError, match=message) as error:
    budget.options(model, params, [first, {"target": "lm_head/.*", **rule}], [batch])
  assert "\n" not in str(error.value)
