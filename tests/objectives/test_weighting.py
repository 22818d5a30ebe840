"""Weights of tasks against the formula of the paper on plain sums, and where it is least."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models, objectives
from research.core.config import ConfigError
from research.loop import state as state_lib
from research.optim import build as optim

SHAPE = {
  "model_type": "llama",
  "vocab_size": 37,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
}
TASKS = ("sums", "chat")
UNCERTAIN = {"name": "causal", "weighting": {"name": "uncertainty", "start": 0.5}}
FIXED = {"name": "causal", "weighting": {"name": "fixed", "weights": {"chat": 3.0, "sums": 0.5}}}
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def setting():
  model = models.build(SHAPE)
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 37, (2, 9)).astype(np.int32)
  batch = {
    "tokens": tokens,
    "targets": np.roll(tokens, -1, axis=1),
    "weights": (rng.random((2, 9)) * (rng.random((2, 9)) < 0.8)).astype(np.float32),
    "segments": np.array([[1] * 9, [1] * 4 + [2] * 5], np.int32),
    "positions": np.array([np.arange(9), [*range(4), *range(5)]], np.int32),
    "task": np.array([[1] * 9, [0] * 4 + [1] * 5], np.int32),
  }
  params = jax.jit(model.init)(KEY, tokens)["params"]
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(KEY, x.shape), params)
  return model, params, batch


def _plain(model, params, batch):
  """Each task's sum of weighted losses, and of weights."""
  logits = model.apply({"params": params}, batch["tokens"], batch["positions"], batch["segments"])
  chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)[..., 0]
  sums = [jnp.sum(-chosen * batch["weights"], where=batch["task"] == t) for t in range(2)]
  weights = [jnp.sum(batch["weights"], where=batch["task"] == t) for t in range(2)]
  return sums, weights


def _check(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_uncertainty_is_the_papers_loss(setting):
  model, params, batch = setting
  loss = objectives.build(UNCERTAIN, TASKS)
  learnt = objectives.variables(loss)
  assert learnt == {"log_variance": {"sums": 0.5, "chat": 0.5}}
  learnt = {"log_variance": {"sums": jnp.float32(0.7), "chat": jnp.float32(-0.4)}}

  def ours(params, learnt):
    total, weight, metrics = loss(model, {"params": params, "objective": learnt}, batch, KEY, 0)
    return total, (weight, metrics)

  def plain(params, learnt):
    sums, weights = _plain(model, params, batch)
    variances = [jnp.exp(learnt["log_variance"][name]) for name in TASKS]
    deviations = [jnp.sqrt(variance) for variance in variances]
    return sum(
      s / v + w * jnp.log(d)
      for s, w, v, d in zip(sums, weights, variances, deviations, strict=True)
    )

  ours = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))
  (total, (weight, metrics)), got = ours(params, learnt)
  value, want = jax.jit(jax.value_and_grad(plain, (0, 1)))(params, learnt)
  _check(total, value)
  jax.tree.map(_check, got, want)
  _check(weight, batch["weights"].sum())
  sums, weights = jax.jit(_plain, static_argnums=0)(model, params, batch)
  for name, s, w in zip(TASKS, sums, weights, strict=True):
    _check(metrics[f"loss/{name}"], (s, w))  # as they are, for people to compare
    assert metrics[f"log_variance/{name}"] == (learnt["log_variance"][name], 1)
  _check(metrics["loss"], (sum(sums), sum(weights)))

  # It is least where the variance is twice the mean loss.
  best = {n: jnp.log(2 * s / w) for n, s, w in zip(TASKS, sums, weights, strict=True)}
  _, (_, slope) = ours(params, {"log_variance": best})
  _check(list(slope["log_variance"].values()), [0, 0])


def test_fixed_weights_are_those_of_the_batch(setting):
  model, params, batch = setting
  loss = objectives.build(FIXED, TASKS)
  assert objectives.variables(loss) == {}
  factors = np.array([0.5, 3.0], np.float32)[batch["task"]]
  bare = objectives.build({"name": "causal"}, TASKS)

  @jax.jit
  def all_four(weighed):
    variables = {"params": params}
    return (
      loss(model, variables, batch, KEY, 0),
      bare(model, variables, weighed, KEY, 0),
      loss(model, variables, batch, None, 0),
      bare(model, variables, batch, None, 0),
    )

  ours, plain, measured, bare_measured = all_four({**batch, "weights": batch["weights"] * factors})
  _check(ours[:2], plain[:2])
  _check(measured[:2], bare_measured[:2])  # a measure is of the tokens as they are
  for name in TASKS:
    _check(ours[2][f"loss/{name}"], bare_measured[2][f"loss/{name}"])


def test_what_it_learns_trains_without_decay(setting):
  _, params, _ = setting
  variables = {
    "params": params,
    "objective": objectives.variables(objectives.build(UNCERTAIN, TASKS)),
  }
  trains = state_lib.trains(["final_norm/scale"], variables, lambda path, leaf: False)
  assert trains("objective/log_variance/sums", None)
  mask = optim.decay_mask((), {"objective": {"log_variance": {"sums": jnp.zeros(())}}})
  assert not mask["objective"]["log_variance"]["sums"]


def test_weights_that_do_not_fit():
  def of(weighting, tasks=TASKS):
    return objectives.variables(objectives.build({"name": "causal", "weighting": weighting}, tasks))

  with pytest.raises(ConfigError, match="the data name none"):
    of({"name": "uncertainty"}, ())
  with pytest.raises(ConfigError, match="did you mean 'uncertainty'"):
    of({"name": "uncertanty"})
  with pytest.raises(ConfigError, match="no task 'sum'; did you mean 'sums'"):
    of({"name": "fixed", "weights": {"sum": 1.0, "chat": 1.0}})
  with pytest.raises(ConfigError, match="every task needs one above 0: chat"):
    of({"name": "fixed", "weights": {"sums": 1.0}})
