"""Chunked log-probabilities and their gradients against a plain softmax over all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.losses import log_probs

B, S, D, V = 3, 7, 5, 11
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(B, S, D)).astype(np.float32)
KERNEL = RNG.normal(size=(D, V)).astype(np.float32)
TARGETS = RNG.integers(0, V, (B, S)).astype(np.int32)
COUNTED = (RNG.random((B, S)) < 0.6).astype(np.float32)
COUNTED[2] = 0  # a row without a completion


def head(variables, hidden):
  return hidden @ variables["kernel"]


def plain(kernel, hidden):
  found = jnp.take_along_axis(jax.nn.log_softmax(hidden @ kernel), TARGETS[..., None], -1)[..., 0]
  return jnp.where(COUNTED > 0, found, 0.0)


def ours(kernel, hidden):
  return log_probs.of_targets(head, {"kernel": kernel}, hidden, TARGETS, COUNTED, chunk_tokens=6)


def of_rows(log_probs):
  """A loss that is not linear in them, so that what flows back differs by row and token."""
  sums = (log_probs * np.linspace(0.5, 2, S)).sum(axis=1)
  return jnp.sum(jax.nn.sigmoid(sums[0] - sums[1])) + jnp.sum(jnp.square(log_probs))


def test_values():
  np.testing.assert_allclose(jax.jit(ours)(KERNEL, HIDDEN), plain(KERNEL, HIDDEN), rtol=1e-5)


@pytest.mark.parametrize("by", [(1,), (0, 1)], ids=["frozen head", "head trains"])
def test_gradients(by):
  got = jax.jit(jax.grad(lambda k, h: of_rows(ours(k, h)), by))(KERNEL, HIDDEN)
  want = jax.grad(lambda k, h: of_rows(plain(k, h)), by)(KERNEL, HIDDEN)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_frozen_head_makes_its_logits_once():
  def products(by):
    text = str(jax.make_jaxpr(jax.grad(lambda k, h: of_rows(ours(k, h)), by))(KERNEL, HIDDEN))
    return text.count("dot_general")

  assert products((1,)) < products((0, 1))
