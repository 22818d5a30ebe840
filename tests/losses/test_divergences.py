"""Divergences against TRL's generalized JSD, plain formulas in torch, and their identities."""

import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.experimental.gkd.gkd_trainer import GKDTrainer

from research.core import config
from research.losses import divergences

RNG = np.random.default_rng(0)
STUDENT, TEACHER = (RNG.normal(size=(5, 12)).astype(np.float32) * 3 for _ in range(2))
BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)


def gradients_of(divergence, student=STUDENT, teacher=TEACHER):
  """`(losses [N], gradient [N, V])` of the sum."""

  def total(student):
    losses = divergence(student, teacher)
    return losses.sum(), losses

  (_, losses), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(student)
  return losses, gradient


def in_torch(loss, student=STUDENT, teacher=TEACHER):
  leaf = torch.tensor(student, requires_grad=True)
  losses = loss(leaf, torch.tensor(teacher))
  losses.sum().backward()
  return losses.detach().numpy(), leaf.grad.numpy()


def agree(got, want, tolerance=1e-5):
  for ours, theirs in zip(got, want, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("beta", BETAS)
def test_jensen_shannon_is_that_of_trl(beta):
  def theirs(student, teacher):
    return GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, reduction="none").sum(-1)

  agree(gradients_of(divergences.jensen_shannon(beta=beta)), in_torch(theirs))


@pytest.mark.parametrize(
  ("name", "formula"),
  [
    ("forward_kl", lambda s, t: (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1)),
    ("reverse_kl", lambda s, t: (s.softmax(-1) * (s.log_softmax(-1) - t.log_softmax(-1))).sum(-1)),
    ("total_variation", lambda s, t: (s.softmax(-1) - t.softmax(-1)).abs().sum(-1) / 2),
    ("mean_squared", lambda s, t: ((s - t) ** 2).mean(-1)),
  ],
)
def test_value_and_gradient_of_the_plain_formula(name, formula):
  divergence = config.call(divergences.DIVERGENCES, {"name": name})
  agree(gradients_of(divergence), in_torch(formula))


def test_no_gradient_to_the_teacher():
  def total(teacher):
    return sum(make()(STUDENT, teacher).sum() for make in divergences.DIVERGENCES.values())

  assert not jax.jit(jax.grad(total))(TEACHER).any()


def test_logits_of_half_precision_and_of_any_size():
  student = jnp.asarray([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]], jnp.bfloat16)
  teacher = jnp.asarray([[0.0, 1.0, 2.0], [-1e4, 1e4, 0.0]], jnp.bfloat16)
  for name in ("forward_kl", "jensen_shannon", "reverse_kl", "total_variation"):
    losses, gradient = gradients_of(divergences.DIVERGENCES[name](), student, teacher)
    assert losses.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    assert np.isfinite(losses).all() and np.isfinite(gradient.astype(jnp.float32)).all()


def lumped(logits, ids):
  """Probabilities `[N, K + 1]` of the tokens `ids [N, K]` and of all others together."""
  p = logits.softmax(-1)
  top = p.gather(-1, ids)
  return torch.cat([top, 1 - top.sum(-1, keepdim=True)], -1)


@pytest.mark.parametrize("k", [1, 4, 11])
def test_buckets_are_those_of_the_lumped_distributions(k):
  ids, log_probs = divergences.top_k(jnp.asarray(TEACHER), k)
  indices = torch.tensor(np.array(ids, np.int64))

  def theirs(student, teacher):
    p, q = lumped(student, indices), lumped(teacher, indices)
    return (q * (q / p).log()).sum(-1)

  def ours(student, teacher):
    del teacher
    return divergences.bucketed(divergences.forward_kl(), student, ids, log_probs)

  agree(gradients_of(ours), in_torch(theirs), 2e-5)


def test_buckets_of_all_tokens_are_the_whole():
  ids, log_probs = divergences.top_k(jnp.asarray(TEACHER), TEACHER.shape[-1])
  for name in ("forward_kl", "jensen_shannon", "reverse_kl", "total_variation"):
    divergence = divergences.DIVERGENCES[name]()
    got = gradients_of(lambda s, t, d=divergence: divergences.bucketed(d, s, ids, log_probs))
    agree(got, gradients_of(divergence))


def test_top_k_at_a_temperature():
  ids, log_probs = divergences.top_k(jnp.asarray(TEACHER), 3, 2.0)
  want, indices = (torch.tensor(TEACHER) / 2).log_softmax(-1).topk(3)
  np.testing.assert_array_equal(ids, indices)
  np.testing.assert_allclose(log_probs, want, rtol=1e-5, atol=1e-6)


LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=6, max_size=6)


@jax.jit
def all_of(student, teacher):
  """Each divergence both ways, of everything and of two buckets and the rest."""
  ids, log_probs = divergences.top_k(teacher, 2)
  found = {}
  for name in ("forward_kl", "jensen_shannon", "reverse_kl", "total_variation"):
    divergence = divergences.DIVERGENCES[name]()
    found[name] = divergence(student, teacher)
    found[f"{name} turned"] = divergence(teacher, student)
    found[f"{name} bucketed"] = divergences.bucketed(divergence, student, ids, log_probs)
  low = divergences.jensen_shannon(beta=1e-2)(student, teacher)
  high = divergences.jensen_shannon(beta=0.99)(student, teacher)
  return found | {"low": low * 1e2, "high": high * 1e2}


@settings(max_examples=60, deadline=None)
@given(LOGITS, LOGITS)
def test_identities(student, teacher):
  found = {name: float(x) for name, x in all_of(jnp.array(student), jnp.array(teacher)).items()}
  for name in ("forward_kl", "jensen_shannon", "reverse_kl", "total_variation"):
    assert found[name] >= -2e-6
    assert found[f"{name} bucketed"] <= found[name] * (1 + 1e-4) + 1e-5
  # Turned round, one KL is the other, and the even mixture and total variation are themselves.
  np.testing.assert_allclose(found["forward_kl turned"], found["reverse_kl"], rtol=1e-4, atol=1e-5)
  for name in ("jensen_shannon", "total_variation"):
    np.testing.assert_allclose(found[f"{name} turned"], found[name], rtol=1e-4, atol=1e-6)
  assert found["jensen_shannon"] <= np.log(2) + 1e-6
  assert 2 * found["total_variation"] ** 2 <= found["forward_kl"] * (1 + 1e-4) + 1e-5  # Pinsker
  # Over beta or 1 - beta, the generalized divergence comes to the KLs from below.
  assert found["low"] <= found["forward_kl"] + 1e-3
  assert found["high"] <= found["reverse_kl"] + 1e-3


def test_the_ends_are_the_limits():
  for beta, end in ((1e-3, 0.0), (1 - 1e-3, 1.0)):
    near = divergences.jensen_shannon(beta=beta)(STUDENT / 3, TEACHER / 3) / 1e-3
    np.testing.assert_allclose(
      near, divergences.jensen_shannon(beta=end)(STUDENT / 3, TEACHER / 3), rtol=2e-2
    )


def test_mistakes():
  with pytest.raises(ValueError, match="beta is between 0 .* not 1.5"):
    divergences.jensen_shannon(beta=1.5)
  with pytest.raises(config.ConfigError, match="did you mean 'reverse_kl'"):
    config.call(divergences.DIVERGENCES, {"name": "revers_kl"})
  ids, log_probs = divergences.top_k(jnp.asarray(TEACHER), 2)
  with pytest.raises(ValueError, match="mean_squared compares logits"):
    divergences.bucketed(divergences.mean_squared(), STUDENT, ids, log_probs)
