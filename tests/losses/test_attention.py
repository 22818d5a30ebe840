"""Losses of attention against plain torch, with padding, and how heads are mapped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from research.losses import attention

RNG = np.random.default_rng(0)
STUDENT, TEACHER = (RNG.normal(size=(2, 4, 5, 5)).astype(np.float32) * 2 for _ in range(2))
VECTORS = RNG.normal(size=(2, 5, 12)).astype(np.float32)
WIDE = RNG.normal(size=(2, 5, 16)).astype(np.float32)
REAL = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
MASK = np.tril(np.ones((5, 5), bool)) & REAL[:, None] & REAL[:, :, None]  # [B, S, T]


def gradient_of(loss, student):
  def total(student):
    losses = loss(student)
    return losses.sum(), losses

  (_, losses), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(student)
  return losses, gradient


def check(ours, theirs, student):
  """Both over rows of one length each, since the plain form knows no padding."""
  losses, gradient = gradient_of(ours, student)
  assert np.isfinite(gradient).all() and not losses[0, 3:].any()
  for row, length in enumerate(REAL.sum(1)):
    leaf = torch.tensor(student[row], requires_grad=True)
    want = theirs(leaf, row, length)  # [length]
    want.sum().backward()
    np.testing.assert_allclose(losses[row, :length], want.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient[row], leaf.grad, rtol=1e-5, atol=1e-6)


def kl_of_maps(student, teacher):
  """Scores `[H, n, n]` under a causal mask -> `[n]`, a mean over heads."""
  hidden = ~torch.tril(torch.ones(student.shape[-2:], dtype=torch.bool))
  log_p, log_q = (x.masked_fill(hidden, -torch.inf).log_softmax(-1) for x in (student, teacher))
  terms = (log_q.exp() * (log_q - log_p)).masked_fill(hidden, 0.0)
  return terms.sum(-1).mean(0)


def test_kl_of_maps():
  def theirs(student, row, n):
    return kl_of_maps(student[:, :n, :n], torch.tensor(TEACHER[row][:, :n, :n]))

  check(lambda student: attention.map_kl(student, TEACHER, MASK), theirs, STUDENT)


def test_mean_squared_scores():
  def theirs(student, row, n):
    squares = (student[:, :n, :n] - torch.tensor(TEACHER[row][:, :n, :n])) ** 2
    return torch.stack([squares[:, i, : i + 1].mean() for i in range(n)])

  check(lambda student: attention.score_mean_squared(student, TEACHER, MASK), theirs, STUDENT)


@pytest.mark.parametrize("heads", [1, 4])
def test_relations(heads):
  def relations(vectors):  # [n, D] -> [R, n, n]
    parts = torch.stack(vectors.chunk(heads, dim=-1))
    return parts @ parts.transpose(1, 2) / parts.shape[-1] ** 0.5

  def theirs(student, row, n):
    return kl_of_maps(relations(student[:n]), relations(torch.tensor(WIDE[row][:n])))

  check(lambda student: attention.relation_kl(student, WIDE, MASK, heads=heads), theirs, VECTORS)


def test_a_mask_that_broadcasts():
  whole = np.broadcast_to(np.ones((1, 1, 5), bool), (2, 5, 5))
  for loss in (attention.map_kl, attention.score_mean_squared):
    got = loss(STUDENT, TEACHER, jnp.ones((1, 1, 5), bool))
    np.testing.assert_allclose(got, loss(STUDENT, TEACHER, whole), rtol=1e-6)


def test_no_gradient_to_the_teacher():
  for loss in (attention.map_kl, attention.score_mean_squared):
    assert not jax.grad(lambda t, loss=loss: loss(STUDENT, t, MASK).sum())(
      jnp.asarray(TEACHER)
    ).any()


def test_heads_that_differ():
  two = attention.map_heads(TEACHER, 2)
  np.testing.assert_allclose(two[:, 1], (TEACHER[:, 2] + TEACHER[:, 3]) / 2, rtol=1e-6)
  eight = attention.map_heads(TEACHER, 8)
  np.testing.assert_array_equal(eight[:, 5], TEACHER[:, 2])
  chosen = attention.map_heads(TEACHER, 3, (3, 0, 3))
  np.testing.assert_array_equal(chosen, TEACHER[:, [3, 0, 3]])


def test_mistakes():
  with pytest.raises(ValueError, match="3 heads of the student and 4 of the teacher"):
    attention.map_heads(TEACHER, 3)
  with pytest.raises(ValueError, match="2 numbers from 0 to 3"):
    attention.map_heads(TEACHER, 2, (0, 4))
  with pytest.raises(ValueError, match="where heads differ, map_heads"):
    attention.map_kl(STUDENT[:, :2], TEACHER, MASK)
  with pytest.raises(ValueError, match="5 relation heads do not divide the student's"):
    attention.relation_kl(VECTORS, WIDE, MASK, heads=5)
