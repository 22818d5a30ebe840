"""Losses of hidden states against plain torch, and what must hold of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from research.core import config
from research.losses import features

RNG = np.random.default_rng(0)
STUDENT = RNG.normal(size=(2, 5, 6)).astype(np.float32)
TEACHER = RNG.normal(size=(2, 5, 8)).astype(np.float32)
PROJECTION = RNG.normal(size=(6, 8)).astype(np.float32)
WEIGHTS = np.array([[1, 1, 0.5, 0, 0], [1, 2, 1, 1, 0]], np.float32)

FORMULAS = {
  "mean_squared": lambda s, t: ((s - t) ** 2).mean(-1),
  "cosine": lambda s, t: 1 - functional.cosine_similarity(s, t, dim=-1),
  "normalized": lambda s, t: (
    (functional.normalize(s, dim=-1) - functional.normalize(t, dim=-1)).pow(2).sum(-1)
  ),
}


@pytest.mark.parametrize("name", sorted(features.FEATURES))
def test_value_and_gradients(name):
  def ours(student, projection):
    losses = config.call(
      features.FEATURES,
      {"name": name},
      student=student,
      teacher=TEACHER,
      projection=projection,
    )
    return (losses * WEIGHTS).sum(), losses

  (_, losses), gradients = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(
    STUDENT, PROJECTION
  )
  leaves = [torch.tensor(x, requires_grad=True) for x in (STUDENT, PROJECTION)]
  want = FORMULAS[name](leaves[0] @ leaves[1], torch.tensor(TEACHER))
  (want * torch.tensor(WEIGHTS)).sum().backward()
  np.testing.assert_allclose(losses, want.detach(), rtol=1e-5, atol=1e-6)
  for got, leaf in zip(gradients, leaves, strict=True):
    np.testing.assert_allclose(got, leaf.grad, rtol=1e-5, atol=1e-5)


def test_padding_of_zeros_has_a_finite_gradient():
  def total(student):
    return sum(loss(student, student + 1).sum() for loss in features.FEATURES.values())

  assert np.isfinite(jax.jit(jax.grad(total))(jnp.zeros((1, 2, 4)))).all()


def test_cka_is_that_of_the_gram_matrices():
  """The definition by centred kernels of tokens: `HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`."""
  student = torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)
  rows = torch.tensor((2 * WEIGHTS).astype(int).reshape(-1))
  x, y = (
    z.reshape(-1, z.shape[-1]).repeat_interleave(rows, 0)
    for z in (student, torch.tensor(TEACHER, dtype=torch.float64))
  )
  centre = torch.eye(len(x), dtype=torch.float64) - 1 / len(x)
  k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
  want = 1 - (k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()
  want.backward()
  got, gradient = jax.jit(jax.value_and_grad(features.linear_cka))(STUDENT, TEACHER, WEIGHTS)
  np.testing.assert_allclose(got, want.item(), rtol=1e-5)
  np.testing.assert_allclose(gradient, student.grad, rtol=1e-4, atol=1e-6)


def test_cka_sees_no_rotation_multiple_or_shift():
  rotation = np.linalg.qr(RNG.normal(size=(8, 8)))[0].astype(np.float32)
  turned = 3e4 * TEACHER @ rotation + 5.0
  cka = jax.jit(features.linear_cka)
  np.testing.assert_allclose(cka(turned, TEACHER, WEIGHTS), 0, atol=1e-5)
  np.testing.assert_allclose(cka(np.ones_like(turned), TEACHER, WEIGHTS), 1, atol=1e-6)


def test_mistakes():
  with pytest.raises(ValueError, match=r"need a projection \[6, 8\]"):
    features.cosine(STUDENT, TEACHER)
  with pytest.raises(ValueError, match=r"the projection is \[8, 6\]"):
    features.cosine(STUDENT, TEACHER, PROJECTION.T)
  with pytest.raises(ValueError, match="read the same rows"):
    features.linear_cka(STUDENT[:1], TEACHER, WEIGHTS)
