"""KTO against TRL's trainer, given log-probabilities."""

from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trl.trainer.kto_trainer import KTOTrainer

from research.losses import kto

RNG = np.random.default_rng(0)
LOG_PROBS, REFERENCE, OTHER, OTHER_REFERENCE = RNG.normal(size=(4, 6)).astype(np.float32) * 3 - 9
DESIRABLE = np.array([True, False, True, True, False, True])
BETA, GOOD, BAD = 0.3, 1.2, 0.7
ONE_PROCESS = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x)


def in_trl(other, desirable):
  metrics = defaultdict(list)

  trainer = SimpleNamespace(
    model=SimpleNamespace(training=True),
    accelerator=ONE_PROCESS,
    aux_loss_enabled=False,
    precompute_ref_logps=True,
    calculate_KL=True,
    loss_type="kto",
    beta=BETA,
    desirable_weight=GOOD,
    undesirable_weight=BAD,
    _compute_kl_logps=lambda model, batch: torch.tensor(other),
    _metrics={"train": metrics},
    _total_train_tokens=0,
    _tp_size=1,
  )
  leaf = torch.tensor(LOG_PROBS, requires_grad=True)
  nothing = torch.zeros(6, 1)
  answers = SimpleNamespace(log_probs=leaf[:, None], entropy=nothing, mean_logits=nothing)
  batch = {
    "label": torch.tensor(desirable),
    "input_ids": torch.zeros(6, 2, dtype=torch.long),
    "attention_mask": torch.ones(6, 2),
    "completion_mask": torch.tensor([[0, 1]] * 6),
    "ref_logps": torch.tensor(REFERENCE),
    "ref_KL_logps": torch.tensor(OTHER_REFERENCE),
  }
  loss = KTOTrainer._compute_loss(trainer, lambda **_: answers, batch, False)
  loss.backward()
  return loss.item(), leaf.grad.numpy(), {name: values[-1] for name, values in metrics.items()}


@jax.jit
def ours(log_probs, other, desirable, weights):
  kl = kto.mismatched_kl(other, OTHER_REFERENCE, weights)
  loss = kto.kto(beta=BETA, desirable_weight=GOOD, undesirable_weight=BAD)

  def mean(log_probs):
    judged = kto.Judged(log_probs, REFERENCE, desirable, weights)
    found = jnp.sum(loss(judged, kl) * weights) / weights.sum()
    return found, kto.metrics(judged, kl, beta=BETA)

  return jax.value_and_grad(mean, has_aux=True)(log_probs)


@pytest.mark.parametrize("shift", [4.0, -40.0])  # a KL above 0, and one that is held there
@pytest.mark.parametrize("desirable", [DESIRABLE, np.ones(6, bool)])
def test_loss_gradient_and_metrics(shift, desirable):
  other = OTHER + np.float32(shift)
  (loss, metrics), gradient = ours(LOG_PROBS, other, desirable, jnp.ones(6))
  want, want_gradient, want_metrics = in_trl(other, desirable)
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  np.testing.assert_allclose(gradient, want_gradient, rtol=1e-5, atol=1e-6)
  assert (want_metrics["kl"] > 0) == (shift > 0)
  for name, (total, weight) in metrics.items():
    if name in want_metrics:
      np.testing.assert_allclose(total / weight, want_metrics[name], rtol=1e-5, err_msg=name)
    else:
      assert weight == 0  # of rejected ones, where there are none


def test_rows_without_a_completion_change_nothing():
  weights = jnp.array([1.0, 1, 1, 1, 0, 1])
  far = OTHER + np.float32(4) + np.array([0, 0, 0, 0, 99, 0], np.float32)
  (loss, metrics), gradient = ours(LOG_PROBS, far, DESIRABLE, weights)
  kept = np.array([0, 1, 2, 3, 5])
  kl = max(0.0, float((far - OTHER_REFERENCE)[kept].mean()))
  apart = BETA * (LOG_PROBS - REFERENCE - kl)
  signed = np.where(DESIRABLE, apart, -apart)
  want = np.where(DESIRABLE, GOOD, BAD) * (1 - 1 / (1 + np.exp(-signed)))
  np.testing.assert_allclose(loss, want[kept].mean(), rtol=1e-5)
  assert gradient[4] == 0 and metrics["rewards/rejected"][1] == 1


def test_mistakes():
  with pytest.raises(ValueError, match="beta is -1; it is above 0"):
    kto.kto(beta=-1)
