"""Meta-gradients against plain slow versions, and what a learnt start is good for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.core import tree
from research.core.config import ConfigError
from research.loop import meta as meta_lib
from research.loop import state as state_lib
from research.loop import step as step_lib
from research.optim import schedules

RATE, ROWS = 0.5, 4
DESCENT = optax.named_chain(("descent", optax.scale(-1.0)))


def _step(tiny, meta, optimizer=DESCENT, slices=1, objective=None):
  return jax.jit(
    step_lib.make_step(
      tiny.model,
      objective or tiny.loss_without_dropout,
      optimizer,
      schedules.linear(1.0, 10),
      accumulate_steps=slices,
      seed=3,
      meta=meta,
    )
  )


def _start(params, optimizer=DESCENT):
  state = state_lib._initial({"params": params, "adapters": {}}, optimizer)
  return state, jax.tree.map(lambda _: None, state.trainable)


def _plain(tiny):
  """`(params, rows) -> (sum of losses, weight), gradients of their quotient`."""

  def mean(params, rows):
    variables = {"params": params, "adapters": {}}
    total, weight, _ = tiny.loss_without_dropout(tiny.model, variables, rows, None, None)
    return total / weight, (total, weight)

  return jax.jit(jax.value_and_grad(mean, has_aux=True))


def _descend(params, gradients, rate=RATE):
  return jax.tree.map(lambda p, g: p - rate * g, params, gradients)


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("name", ["maml", "reptile"])
def test_meta_gradient_is_the_slow_plain_one(tiny, name, slices):
  batch = tiny.batch(0, rows=4 * ROWS)
  batch["weights"][ROWS : 2 * ROWS] = 0  # a task without a target
  plain, params = _plain(tiny), tiny.params
  total, count, wanted = 0.0, 0.0, jax.tree.map(jnp.zeros_like, params)
  first = []
  for task in range(4):
    if task == 1:
      continue
    rows = {k: v[task * ROWS : (task + 1) * ROWS] for k, v in batch.items()}
    adapted, way = params, jax.tree.map(jnp.zeros_like, params)
    weights, losses = 0.0, 0.0
    for inner in range(2):
      part = slice(0, 3) if name == "maml" else slice(inner, None, 2)
      (_, (loss, weight)), found = plain(adapted, {k: v[part] for k, v in rows.items()})
      adapted, way = _descend(adapted, found), jax.tree.map(jnp.add, way, found)
      weights, losses = weights + weight, losses + loss
      if inner == 0:
        first.append((loss, weight))
    if name == "maml":
      (_, (losses, weights)), way = plain(adapted, {k: v[3:] for k, v in rows.items()})
    wanted = jax.tree.map(lambda s, g, w=weights: s + w * g, wanted, way)
    total, count = total + losses, count + weights
  wanted = jax.tree.map(lambda g: g / count, wanted)

  method = (
    meta_lib.maml(ROWS, 3, RATE, inner_steps=2)
    if name == "maml"
    else meta_lib.reptile(ROWS, RATE, inner_steps=2)
  )
  after, metrics = _step(tiny, method, slices=slices)(*_start(params), batch)
  for path, leaf in tree.flatten(_descend(params, wanted, 1.0)).items():
    got = tree.flatten(after.trainable["params"])[path]
    np.testing.assert_allclose(got, leaf, rtol=1e-5, atol=1e-6, err_msg=path)
  np.testing.assert_allclose(metrics["sums"]["loss"], (total, count), rtol=1e-5)
  np.testing.assert_allclose(metrics["sums"]["inner/first_loss"], np.sum(first, 0), rtol=1e-5)


def test_one_step_of_reptile_is_joint_training(tiny):
  batch = tiny.batch(0, rows=2 * ROWS)
  joint, _ = _step(tiny, None)(*_start(tiny.params), batch)
  one, _ = _step(tiny, meta_lib.reptile(ROWS, RATE, inner_steps=1))(*_start(tiny.params), batch)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    one.trainable,
    joint.trainable,
  )


def _languages(rng, tasks, vocab=11, length=24):
  """Rows of tasks: each is a cycle through all tokens, in an order of its own."""
  batch = {}
  rows = []
  for _ in range(tasks):
    following = np.empty(vocab, np.int32)
    order = rng.permutation(vocab)
    following[order] = np.roll(order, -1)
    for _ in range(ROWS):
      row = [rng.integers(vocab)]
      for _ in range(length):
        row.append(following[row[-1]])
      rows.append(row)
  rows = np.array(rows, np.int32)
  batch["tokens"], batch["targets"] = rows[:, :-1], rows[:, 1:]
  batch["weights"] = np.ones_like(batch["tokens"], np.float32)
  batch["segments"] = np.ones_like(batch["tokens"])
  batch["positions"] = np.broadcast_to(np.arange(length, dtype=np.int32), batch["tokens"].shape)
  return batch


def test_a_learnt_start_adapts_faster_than_a_joint_one(tiny):
  """Loss on rows of new languages, after three steps on others of them."""
  plain = _plain(tiny)
  adam = optax.named_chain(("adam", optax.adam(0.03)))

  def trained(meta):
    step, (state, frozen) = _step(tiny, meta, adam), _start(tiny.params, adam)
    rng = np.random.default_rng(0)
    for _ in range(150):
      state, _ = step(state, frozen, _languages(rng, tasks=4))
    return state.trainable["params"]

  def adapted_loss(params):
    rng, losses = np.random.default_rng(1), []
    for _ in range(10):
      rows = _languages(rng, tasks=1)
      adapted = params
      for _ in range(3):
        _, found = plain(adapted, {k: v[:3] for k, v in rows.items()})
        adapted = _descend(adapted, found, 2.0)
      losses.append(float(plain(adapted, {k: v[3:] for k, v in rows.items()})[0][0]))
    return np.mean(losses)

  joint = adapted_loss(trained(None))
  maml = adapted_loss(trained(meta_lib.maml(ROWS, 3, 2.0, inner_steps=3)))
  reptile = adapted_loss(trained(meta_lib.reptile(ROWS, 2.0, inner_steps=4)))
  print(f"joint {joint:.3f} maml {maml:.3f} reptile {reptile:.3f} chance {np.log(10):.3f}")
  assert maml < 0.6 * joint
  assert reptile < 0.8 * joint


def test_what_cannot_be_is_refused():
  assert meta_lib.build({}) is None
  for section, message in (
    ({"name": "mmal"}, "did you mean 'maml'"),
    ({"name": "maml", "rows_per_task": 4, "support_rows": 4}, "lacks 'inner_learning_rate'"),
    ({"name": "reptile", "rows_per_task": 4, "inner_learning_rate": 0.0}, "above 0"),
    (
      {"name": "reptile", "rows_per_task": 3, "inner_learning_rate": 0.1},
      "3 rows a task do not divide among 2 inner steps",
    ),
    (
      {"name": "maml", "rows_per_task": 4, "support_rows": 4, "inner_learning_rate": 0.1},
      "of 4 rows a task, 1 to 3 can support, not 4",
    ),
  ):
    with pytest.raises(ConfigError, match=message):
      meta_lib.build(section)


def test_slices_are_of_whole_tasks(tiny):
  method = meta_lib.reptile(ROWS, RATE, inner_steps=2)
  with pytest.raises(ValueError, match="3 units of 4 rows cannot be cut into 2 slices"):
    _step(tiny, method, slices=2)(*_start(tiny.params), tiny.batch(0, rows=3 * ROWS))
