"""Losses of a policy's own tokens against TRL's, given the same log-probabilities."""

from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.config import ConfigError
from research.losses import advantages, policy

RNG = np.random.default_rng(0)
ROWS, LENGTH, SAMPLES = 8, 6, 4
LENGTHS = RNG.integers(1, LENGTH + 1, ROWS)
MASK = (np.arange(LENGTH) < LENGTHS[:, None]).astype(np.float32)
NOW = -RNG.exponential(size=(ROWS, LENGTH)).astype(np.float32)
OLD = NOW + 0.3 * RNG.normal(size=NOW.shape).astype(np.float32)
REFERENCE = NOW + 0.3 * RNG.normal(size=NOW.shape).astype(np.float32)
BETTER = RNG.normal(size=ROWS).astype(np.float32)


def ours(loss, average, kl=0.0, length=1, mask=MASK):
  """The mean loss, its gradient by log-probabilities, and metrics."""
  judged = policy.build(loss)

  def mean(log_probs):
    found, metrics = judged(log_probs, OLD, jnp.asarray(BETTER)[:, None] * mask, mask)
    found = found + kl * policy.divergence(log_probs, REFERENCE)
    counted, weight = policy.weights(jnp.asarray(mask), average, length, jnp.ones(ROWS))
    return jnp.sum(counted * found) / weight, metrics

  (value, metrics), gradient = jax.value_and_grad(mean, has_aux=True)(jnp.asarray(NOW))
  return float(value), np.asarray(gradient), {k: float(s / w) for k, (s, w) in metrics.items()}


def theirs(loss_type, level="token", kl=0.0, delta=None, high=0.2, mask=MASK, **more):
  torch = pytest.importorskip("torch")
  grpo = pytest.importorskip("trl.trainer.grpo_trainer")
  now = torch.tensor(NOW, requires_grad=True)
  metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
  same = lambda x: x  # noqa: E731
  trainer = SimpleNamespace(
    _get_per_token_logps_and_entropies=lambda *a, **k: (now, torch.zeros_like(now), None),
    _entropy_bonus_enabled=False,
    _metrics=metrics,
    accelerator=SimpleNamespace(
      num_processes=1, gather=same, reduce=lambda x, reduction=None: x, sync_gradients=True
    ),
    args=SimpleNamespace(
      delta=delta,
      use_bias_correction_kl=False,
      steps_per_generation=1,
      sapo_temperature_pos=1.0,
      sapo_temperature_neg=1.05,
    ),
    aux_loss_enabled=False,
    beta=kl,
    current_gradient_accumulation_steps=1,
    epsilon_high=high,
    epsilon_low=0.2,
    importance_sampling_level=level,
    loss_type=loss_type,
    max_completion_length=LENGTH,
    model=SimpleNamespace(training=True),
    off_policy_mask_threshold=None,
    tools=None,
    top_entropy_quantile=1.0,
    use_adaptive_entropy=False,
    use_vllm=False,
    **more,
  )
  ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
  mask = torch.tensor(mask)
  inputs = {
    "prompt_ids": ids,
    "prompt_mask": torch.ones_like(ids),
    "completion_ids": ids,
    "completion_mask": mask,
    "advantages": torch.tensor(BETTER),
    "old_per_token_logps": torch.tensor(OLD),
    "ref_per_token_logps": torch.tensor(REFERENCE),
    "num_items_in_batch": mask.sum(),
  }
  loss = grpo.GRPOTrainer._compute_loss(trainer, None, inputs)
  loss.backward()
  return loss.item(), now.grad.numpy(), {k: v[0] for k, v in metrics["train"].items()}


CLIPPED = {"name": "clipped"}


@pytest.mark.parametrize(
  ("loss", "average", "settings"),
  [
    (CLIPPED, "answers", {"loss_type": "grpo"}),
    (CLIPPED, "answers", {"loss_type": "grpo", "kl": 0.04}),
    (CLIPPED, "tokens", {"loss_type": "dapo"}),
    ({**CLIPPED, "epsilon_high": 0.28}, "tokens", {"loss_type": "dapo", "high": 0.28}),
    (CLIPPED, "length", {"loss_type": "dr_grpo"}),
    ({**CLIPPED, "delta": 1.3}, "answers", {"loss_type": "grpo", "delta": 1.3}),
    ({**CLIPPED, "level": "sequence"}, "answers", {"loss_type": "grpo", "level": "sequence"}),
    ({"name": "cispo", "epsilon_high": 1.1}, "tokens", {"loss_type": "cispo", "high": 1.1}),
  ],
)
def test_losses_and_gradients_are_those_of_trl(loss, average, settings):
  value, gradient, metrics = ours(loss, average, settings.get("kl", 0.0), LENGTH)
  their_value, their_gradient, their_metrics = theirs(**settings)
  np.testing.assert_allclose(value, their_value, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gradient, their_gradient, rtol=1e-5, atol=1e-6)
  assert np.abs(gradient).max() > 0.01
  for name, found in metrics.items():
    if settings.get("level") != "sequence":  # of which TRL counts answers, and we tokens
      np.testing.assert_allclose(found, their_metrics[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
  ("average", "loss_type"), [("answers", "grpo"), ("tokens", "dapo"), ("length", "dr_grpo")]
)
def test_answers_that_are_left_out_are_counted_as_trl_counts_them(average, loss_type):
  mask = MASK * (np.arange(ROWS) % 2)[:, None].astype(np.float32)
  value, gradient, metrics = ours(CLIPPED, average, length=LENGTH, mask=mask)
  their_value, their_gradient, their_metrics = theirs(loss_type, mask=mask)
  np.testing.assert_allclose(value, their_value, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gradient, their_gradient, rtol=1e-5, atol=1e-6)
  assert not gradient[::2].any() and np.abs(gradient[1::2]).max() > 0.01
  for name, found in metrics.items():
    np.testing.assert_allclose(found, their_metrics[name], rtol=1e-5, err_msg=name)


def test_reinforce_is_the_gradient_of_ratios_where_nothing_has_changed():
  plain = jax.grad(lambda x: policy.reinforce()(x, x, BETTER[:, None], MASK)[0].sum())(NOW)
  judged = policy.clipped()
  held = jax.grad(lambda x: judged(x, jnp.asarray(NOW), BETTER[:, None], MASK)[0].sum())(NOW)
  np.testing.assert_allclose(plain, held, rtol=1e-6)


@pytest.mark.parametrize(
  ("section", "told"),
  [
    ({"name": "clipped", "epsilon": 0.0}, "epsilon is between 0 and 1"),
    ({"name": "clipped", "delta": 1.1}, "delta is above"),
    ({"name": "clipped", "level": "word"}, "there are token, sequence"),
    ({"name": "cispo", "epsilon_high": 0.5}, "not below 1"),
    ({"name": "ppo"}, "there are cispo, clipped, reinforce"),
  ],
)
def test_what_cannot_be(section, told):
  with pytest.raises(ConfigError, match=told):
    policy.build(section)


def test_the_critic_loses_by_the_worse_of_two():
  values, old = jnp.array([[1.0, 0.0, 0.3]]), jnp.array([[0.5, 0.0, 0.0]])
  returns = jnp.array([[1.0, 1.0, 0.0]])
  losses, held = policy.value_loss(values, old, returns, clip=0.2)
  # 0.5 + 0.2 is still 0.3 away; as it is; 0.3 is clipped to 0.2, which is nearer.
  np.testing.assert_allclose(losses[0], [0.5 * 0.3**2, 0.5, 0.5 * 0.3**2], rtol=1e-6)
  assert held[0].tolist() == [True, False, False]


REWARDS = RNG.normal(size=ROWS).astype(np.float32)


def test_a_group_is_compared_with_itself():
  torch = pytest.importorskip("torch")
  groups = torch.tensor(REWARDS).view(-1, SAMPLES)
  apart = groups - groups.mean(1, keepdim=True)
  for scale, spread in (
    ("group", groups.std(1, keepdim=True) + 1e-4),
    ("batch", torch.tensor(REWARDS).std() + 1e-4),
    ("none", 1.0),
  ):
    found = advantages.build({"name": "group", "scale": scale})(jnp.asarray(REWARDS), SAMPLES)
    np.testing.assert_allclose(found, (apart / spread).reshape(-1), rtol=1e-5)


def test_one_is_left_out():
  found = advantages.build({"name": "leave_one_out"})(jnp.asarray(REWARDS), SAMPLES)
  for i, reward in enumerate(REWARDS):
    group = i // SAMPLES * SAMPLES
    others = [REWARDS[j] for j in range(group, group + SAMPLES) if j != i]
    np.testing.assert_allclose(found[i], reward - np.mean(others), rtol=1e-5)


def test_generalized_advantages_are_the_sums_of_the_paper():
  values, rewards = RNG.normal(size=(2, ROWS, LENGTH)).astype(np.float32)
  gamma, lam = 0.9, 0.8
  better, returns = advantages.generalized(rewards, values, MASK, gamma=gamma, lam=lam)
  for row, count in enumerate(LENGTHS):
    v = [*values[row, :count], 0.0]
    deltas = [rewards[row, t] + gamma * v[t + 1] - v[t] for t in range(count)]
    for t in range(LENGTH):
      expected = sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, count))
      np.testing.assert_allclose(better[row, t], expected, rtol=1e-4, atol=1e-6)
      np.testing.assert_allclose(
        returns[row, t], expected + v[t] if t < count else 0.0, rtol=1e-4, atol=1e-5
      )
  white = np.asarray(advantages.whitened(better, MASK))
  told = white[MASK > 0]
  np.testing.assert_allclose([told.mean(), told.var(ddof=1)], [0, 1], atol=1e-4)
  assert not white[MASK == 0].any()
