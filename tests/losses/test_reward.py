"""The reward model's loss against TRL's trainer, given rewards."""

from collections import defaultdict
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from trl.trainer.reward_trainer import RewardTrainer

from research.losses import reward

RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=(10, 1)).astype(np.float32) * 2
MARGIN = RNG.uniform(size=5).astype(np.float32)
ONE_PROCESS = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)


@pytest.mark.parametrize("margin", [None, MARGIN])
@pytest.mark.parametrize("centring", [0.0, 0.01])
def test_loss_gradient_and_metrics(margin, centring):
  metrics = defaultdict(list)
  trainer = SimpleNamespace(
    model=SimpleNamespace(training=True),
    accelerator=ONE_PROCESS,
    args=SimpleNamespace(center_rewards_coefficient=centring or None),
    _metrics={"train": metrics},
    _total_train_tokens=0,
    _tp_size=1,
  )
  leaf = torch.tensor(REWARDS, requires_grad=True)
  inputs = {"attention_mask": torch.ones(10, 1)}
  if margin is not None:
    inputs["margin"] = torch.tensor(margin)
  want = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=leaf), inputs)
  want.backward()

  def ours(rewards):
    chosen, rejected = rewards[:5, 0], rewards[5:, 0]
    margins = 0.0 if margin is None else margin
    losses = reward.bradley_terry(chosen, rejected, margins, centring=centring)
    return losses.mean(), reward.metrics(chosen, rejected, np.ones(5, np.float32))

  (loss, found), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(REWARDS)
  np.testing.assert_allclose(loss, want.item(), rtol=1e-5)
  np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-5, atol=1e-6)
  assert set(found) == {"accuracy", "margin", "mean_reward"}
  for name, (total, weight) in found.items():
    np.testing.assert_allclose(total / weight, metrics[name][-1], rtol=1e-5, atol=1e-6)


def test_rows_without_a_pair_weigh_nothing():
  found = reward.metrics(REWARDS[:5, 0], REWARDS[5:, 0], np.array([1.0, 0, 0, 0, 0], np.float32))
  margin = REWARDS[0, 0] - REWARDS[5, 0]
  np.testing.assert_allclose(found["margin"], (margin, 1), rtol=1e-6)
