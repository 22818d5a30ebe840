"""The backward pass as formulas in float64, from the loss down to the embedding.

Each test writes the gradients of one module out by hand, as textbooks do, and holds the derivative
of ours (often a hand-written one) against them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.losses.cross_entropy import token_losses
from research.nn.attention import attend
from research.nn.embed import Embed
from research.nn.mlp import MLP
from research.nn.norm import Norm


def _draw(*shapes):
  rng = np.random.default_rng(0)
  return [rng.normal(size=shape) for shape in shapes]


def _narrow(*arrays):
  return [np.asarray(array, np.float32) for array in arrays]


def _check(ours, formula):
  np.testing.assert_allclose(ours, formula, rtol=1e-4, atol=1e-5)


def test_cross_entropy_is_probabilities_minus_targets():
  """dL/dlogits = (p - onehot) * dL/dloss; dL/dhidden = dL/dlogits W^T; dL/dW = h^T dL/dlogits."""
  hidden, head, dloss = _draw((5, 4), (4, 7), (5,))
  targets = np.array([0, 6, 3, 3, 1])

  def ours(hidden, head):
    return token_losses(hidden @ head, targets)[0]

  losses, back = jax.vjp(ours, *_narrow(hidden, head))
  logits = hidden @ head
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  _check(losses, -np.log(p[np.arange(5), targets]))
  dlogits = (p - np.eye(7)[targets]) * dloss[:, None]
  dhidden, dhead = back(*_narrow(dloss))
  _check(dhidden, dlogits @ head.T)
  _check(dhead, hidden.T @ dlogits)


@pytest.mark.parametrize("gated", [False, True])
def test_feed_forward(gated):
  """y = phi(x W1 + b1) W2 + b2; gated: y = (phi(x Wg + bg) * (x W1 + b1)) W2 + b2."""
  names = ["up_proj", "down_proj", *(["gate_proj"] if gated else [])]
  x, dy, w1, w2, wg, b1, b2, bg = _draw((5, 4), (5, 4), (4, 6), (6, 4), (4, 6), 6, 4, 6)
  own = {"up_proj": (w1, b1), "down_proj": (w2, b2), "gate_proj": (wg, bg)}
  params = {n: dict(zip(("kernel", "bias"), _narrow(*own[n]), strict=True)) for n in names}
  module = MLP(6, "silu" if gated else "gelu_tanh", gated, True)
  y, back = jax.vjp(lambda p, x: module.apply({"params": p}, x), params, *_narrow(x))
  dparams, dx = back(*_narrow(dy))

  def phi(z):
    """The activation and its derivative."""
    if gated:
      s = 1 / (1 + np.exp(-z))
      return z * s, s + z * s * (1 - s)
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (z + 0.044715 * z**3))
    slope = c * (1 + 3 * 0.044715 * z**2)
    return z * (1 + t) / 2, (1 + t) / 2 + z * (1 - t**2) * slope / 2

  up = x @ w1 + b1
  active, slope = phi(x @ wg + bg) if gated else phi(up)
  hidden = active * up if gated else active
  _check(y, hidden @ w2 + b2)
  dhidden = dy @ w2.T
  dup = dhidden * (active if gated else slope)
  want = {"down_proj": (hidden.T @ dy, dy.sum(0)), "up_proj": (x.T @ dup, dup.sum(0))}
  want_dx = dup @ w1.T
  if gated:
    dgate = dhidden * up * slope
    want["gate_proj"] = (x.T @ dgate, dgate.sum(0))
    want_dx = want_dx + dgate @ wg.T
  _check(dx, want_dx)
  for name in names:
    _check(dparams[name]["kernel"], want[name][0])
    _check(dparams[name]["bias"], want[name][1])


def test_attention():
  """dV = P^T dO; dP = dO V^T; dS = P * (dP - rowsum(dP * P)); dQ = dS K; dK = dS^T Q."""
  heads = (1, 1, 1, 5, 3)  # one head of a group of one
  q, k, v, dout = _draw(heads, (1, 1, 5, 3), (1, 1, 5, 3), heads)
  mask = np.tril(np.ones((1, 5, 5), bool))
  out, back = jax.vjp(lambda q, k, v: attend(q, k, v, mask), *_narrow(q, k, v))
  dq, dk, dv = back(*_narrow(dout))
  q, k, v, dout = (array.reshape(5, 3) for array in (q, k, v, dout))
  scale = 1 / np.sqrt(3)
  scores = np.where(mask[0], q @ k.T * scale, -np.inf)
  p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  _check(out[0, 0, 0], p @ v)
  dp = dout @ v.T
  ds = p * (dp - (dp * p).sum(-1, keepdims=True))
  _check(dv[0, 0], p.T @ dout)
  _check(dq[0, 0, 0], ds @ k * scale)
  _check(dk[0, 0], ds.T @ q * scale)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norm(kind):
  """With g = dy * gamma and u = (x - mean) / sigma: dx = (g - mean(g) - u * mean(g * u)) / sigma.

  RMSNorm's is the same without the means of x and g.
  """
  x, gamma, beta, dy = _draw((5, 6), 6, 6, (5, 6))
  params = dict(zip(("scale", "bias"), _narrow(gamma, beta), strict=True))
  if kind == "rms":
    del params["bias"]
  module = Norm(kind, 1e-6)
  y, back = jax.vjp(lambda p, x: module.apply({"params": p}, x), params, *_narrow(x))
  dparams, dx = back(*_narrow(dy))
  mean = (lambda a: a.mean(-1, keepdims=True)) if kind == "layer" else lambda a: 0.0
  sigma = np.sqrt(((x - mean(x)) ** 2).mean(-1, keepdims=True) + 1e-6)
  u, g = (x - mean(x)) / sigma, dy * gamma
  _check(y, u * gamma + (beta if kind == "layer" else 0))
  _check(dx, (g - mean(g) - u * (g * u).mean(-1, keepdims=True)) / sigma)
  _check(dparams["scale"], (dy * u).sum(0))
  if kind == "layer":
    _check(dparams["bias"], dy.sum(0))


def test_embedding_adds_up_what_its_tokens_get():
  """dE[t] is the sum of dX over the places where token t stands."""
  table, dx = _draw((7, 4), (2, 3, 4))
  ids = np.array([[1, 5, 1], [5, 5, 0]])
  module = Embed(7, 4, jnp.float32)
  _, back = jax.vjp(lambda t: module.apply({"params": {"embedding": t}}, ids), *_narrow(table))
  want = np.zeros_like(table)
  for row, tokens in enumerate(ids):
    for place, token in enumerate(tokens):
      want[token] += dx[row, place]
  _check(back(*_narrow(dx))[0], want)
