"""The chunked loss against one softmax over everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.losses.cross_entropy import chunked, token_losses

KEY = jax.random.key(0)
HIDDEN = jax.random.normal(KEY, (3, 11, 8))
HEAD = {"kernel": jax.random.normal(KEY, (8, 50)), "bias": jax.random.normal(KEY, (50,))}
TARGETS = jax.random.randint(KEY, (3, 11), 0, 50)
WEIGHTS = jnp.where(jax.random.uniform(KEY, (3, 11)) > 0.6, 0.7, 0.0)


def head(variables, hidden):
  return hidden @ variables["kernel"] + variables["bias"]


def plain(variables, hidden):
  log_probs = jax.nn.log_softmax(head(variables, hidden))
  return -(jnp.take_along_axis(log_probs, TARGETS[..., None], -1)[..., 0] * WEIGHTS).sum()


@pytest.mark.parametrize("chunk_tokens", [1, 5, 16, 1000])
def test_value_and_gradients(chunk_tokens):
  def ours(variables, hidden):
    return chunked(head, variables, hidden, TARGETS, WEIGHTS, chunk_tokens=chunk_tokens)[0]

  got = jax.value_and_grad(ours, (0, 1))(HEAD, HIDDEN)
  want = jax.value_and_grad(plain, (0, 1))(HEAD, HIDDEN)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)
  np.testing.assert_allclose(ours(HEAD, HIDDEN), want[0], rtol=1e-6)


def test_gradient_of_a_part_of_the_head():
  def ours(bias):
    return chunked(head, HEAD | {"bias": bias}, HIDDEN, TARGETS, WEIGHTS, chunk_tokens=9)[0]

  want = jax.grad(plain)(HEAD, HIDDEN)["bias"]
  np.testing.assert_allclose(jax.grad(ours)(HEAD["bias"]), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [5, 16, 1000])
@pytest.mark.parametrize("differentiated", [False, True])
def test_losses_and_right_guesses_of_every_token(chunk_tokens, differentiated):
  def ours(hidden):
    total, *tokens = chunked(head, HEAD, hidden, TARGETS, WEIGHTS, chunk_tokens=chunk_tokens)
    return total, tokens

  found = jax.value_and_grad(ours, has_aux=True)(HIDDEN)[0] if differentiated else ours(HIDDEN)
  total, (losses, right) = found
  logits = head(HEAD, HIDDEN)
  np.testing.assert_array_equal(right, (logits.argmax(-1) == TARGETS) * WEIGHTS)
  chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), TARGETS[..., None], -1)[..., 0]
  np.testing.assert_allclose(losses, -chosen * WEIGHTS, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(losses.sum(), total, rtol=1e-6)


def test_no_weight_no_loss():
  def ours(hidden):
    return chunked(head, HEAD, hidden, TARGETS, jnp.zeros_like(WEIGHTS), chunk_tokens=4)[0]

  value, grad = jax.value_and_grad(ours)(HIDDEN)
  assert value == 0 and not grad.any()


def test_a_frozen_head_gets_no_gradient_product():
  """The compiled program holds no [8, 50] gradient when only the hidden states are trained."""

  def ours(variables, hidden):
    return chunked(head, variables, hidden, TARGETS, WEIGHTS)[0]

  def products(argnums):
    text = jax.jit(jax.grad(ours, argnums)).lower(HEAD, HIDDEN).as_text()
    return text.count("dot_general")

  assert products(1) == products((0, 1)) - 1


def test_large_logits_stay_finite():
  losses, right = token_losses(jnp.array([[1e4, 0.0], [-1e4, 0.0]]), jnp.array([0, 0]))
  np.testing.assert_allclose(losses, [0.0, 1e4])
  np.testing.assert_array_equal(right, [True, False])
