"""The step against a slow plain version, and what it does with numbers that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.core import tree
from research.loop import state as state_lib
from research.loop import step as step_lib
from research.optim import schedules

# After one step the parameters tell what the gradient was; after two, that there are moments.
OPTIMIZER = optax.named_chain(("momentum", optax.trace(0.5)), ("descent", optax.scale(-1.0)))


@pytest.fixture(scope="module")
def compiled():
  """Steps by objective and slices, each compiled once for the file."""
  return {}


@pytest.fixture
def make(tiny, compiled):
  def make(objective=tiny.loss, slices=1):
    key = (objective, slices)
    if key not in compiled:
      step = step_lib.make_step(
        tiny.model,
        objective,
        OPTIMIZER,
        schedules.linear(1.0, 10),
        accumulate_steps=slices,
        seed=3,
      )
      compiled[key] = jax.jit(step)
    return compiled[key]

  return make


@pytest.fixture
def start(tiny):
  """A state in which everything trains, and nothing frozen."""
  state = state_lib._initial({"params": tiny.params, "adapters": {}}, OPTIMIZER)
  return state, jax.tree.map(lambda _: None, state.trainable)


def test_accumulation_is_the_large_batch(tiny, make, start):
  batch = tiny.batch(0, rows=8)
  weights = batch["weights"].sum(1)
  assert np.ptp(weights) > 2  # a mean of the slices' means would be something else
  whole, whole_metrics = make(tiny.loss_without_dropout)(*start, batch)
  parts, parts_metrics = make(tiny.loss_without_dropout, slices=4)(*start, batch)
  for path, leaf in tree.flatten(whole.trainable).items():
    np.testing.assert_allclose(
      tree.flatten(parts.trainable)[path], leaf, rtol=1e-6, atol=1e-6, err_msg=path
    )
  for (name, a), b in zip(
    tree.flatten(whole_metrics).items(), tree.flatten(parts_metrics).values(), strict=True
  ):
    np.testing.assert_allclose(b, a, rtol=1e-6, err_msg=name)


def test_the_gradient_is_of_the_weighted_mean(tiny, make, start):
  batch = tiny.batch(1, rows=8)

  def mean(params):
    total, weight, _ = tiny.loss(tiny.model, {"params": params, "adapters": {}}, batch, None, None)
    return total / weight

  loss, gradients = jax.value_and_grad(mean)(tiny.params)
  after, metrics = make(tiny.loss_without_dropout)(*start, batch)
  expected = jax.tree.map(lambda p, g: p - g, tiny.params, gradients)
  for path, leaf in tree.flatten(expected).items():
    got = tree.flatten(after.trainable["params"])[path]
    np.testing.assert_allclose(got, leaf, rtol=1e-6, atol=1e-7, err_msg=path)
  total, weight = metrics["sums"]["loss"]
  np.testing.assert_allclose(total / weight, loss, rtol=1e-6)
  norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradients)))
  np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-6)
  real = batch["segments"] > 0
  assert {name: int(value) for name, value in metrics["counts"].items()} == {
    "tokens": 48,
    "useful_tokens": real.sum(),
    "context": sum(n * (n + 1) // 2 for n in real.sum(1)),
  }


def test_only_what_trains_moves(tiny, make):
  variables = {"params": tiny.params, "adapters": {"shift": jnp.zeros(11)}}
  trainable, frozen = tree.partition(variables, lambda path, _: path.startswith("adapters"))
  after, _ = make()(state_lib._initial(trainable, OPTIMIZER), frozen, tiny.batch(0))
  assert set(tree.flatten(after.trainable)) == {"adapters/shift"}
  assert np.abs(after.trainable["adapters"]["shift"]).max() > 0


def test_random_numbers_follow_from_the_step_alone(tiny, make, start):
  state, frozen = start
  losses = [
    float(
      make()(state.replace(step=jnp.int32(number)), frozen, tiny.batch(0))[1]["sums"]["loss"][0]
    )
    for number in (0, 1, 0)
  ]
  assert losses[0] == losses[2] != losses[1]


def test_an_update_that_is_not_finite_is_skipped_and_counted(tiny, make, start):
  state, frozen = start
  good, bad = tiny.batch(0), tiny.batch(1)
  bad["weights"] = bad["weights"].copy()
  bad["weights"][0, 0] = np.inf
  seen = []
  for batch in (good, bad, bad, good):
    before = state
    state, metrics = make()(state, frozen, batch)
    seen.append((int(state.skipped), int(state.skipped_in_row), float(metrics["learning_rate"])))
    held = {"trainable": before.trainable, "opt_state": before.opt_state}
    moved = [
      path
      for path, leaf in tree.flatten(held).items()
      if not np.array_equal(leaf, tree.flatten(state)[path])
    ]
    assert bool(moved) == (batch is good)
    assert bool(metrics["nonfinite"].any()) == (batch is bad)
  np.testing.assert_allclose(seen, [(0, 0, 1.0), (1, 1, 0.9), (2, 2, 0.9), (2, 0, 0.9)], rtol=1e-6)
  assert int(state.step) == 4
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_a_batch_without_targets_moves_nothing(tiny, make, start):
  batch = tiny.batch(0)
  batch["weights"] = np.zeros_like(batch["weights"])
  after, _ = make()(*start, batch)
  assert int(after.skipped) == 0
  before = tree.flatten(start[0].trainable)
  for path, leaf in tree.flatten(after.trainable).items():
    np.testing.assert_array_equal(leaf, before[path], err_msg=path)


def test_a_batch_that_cannot_be_cut_is_named(tiny, make, start):
  with pytest.raises(ValueError, match="4 rows cannot be cut into 3"):
    make(slices=3)(*start, tiny.batch(0))
