"""Hand-written derivatives and masks against plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.dot import dot
from research.nn import mask
from research.nn.attention import attend
from research.nn.embed import _attend as attend_table
from research.nn.incremental import attend_one
from research.nn.mlp import gelu, swiglu
from research.nn.norm import layer_norm, rms_norm

KEY = jax.random.key(0)


def _random(*shape, seed=0, dtype=jnp.float32):
  return jax.random.normal(jax.random.fold_in(KEY, seed), shape, dtype)


def _plain_attention(q, k, v, visible, scale=None, softcap=None, bias=None):
  scores = jnp.einsum("bngsk,bntk->bngst", q, k) * (scale or q.shape[-1] ** -0.5)
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  if bias is not None:
    scores = scores + bias.reshape(bias.shape[0], *q.shape[1:3], *bias.shape[2:])
  p = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -jnp.inf), axis=-1)
  return jnp.einsum("bngst,bntk->bngsk", p, v)


def _visible(b=2, s=5, t=7):
  visible = np.random.default_rng(0).random((b, s, t)) < 0.6
  visible[..., 0] = True
  return jnp.asarray(visible)


def _earlier(s=300, before=3):
  """Three keys before the row, then earlier tokens of documents of 100."""
  causal = mask.causal(jnp.arange(s)[None] // 100 + 1)
  return jnp.pad(causal, [(0, 0), (0, 0), (before, 0)], constant_values=True)


def _cached(k, v):
  """Keys and values as a cache holds them."""
  return k.swapaxes(2, 3).astype(jnp.float32), v.astype(jnp.float32)


CASES = {
  "dot": (dot, lambda x, w: x @ w, (_random(2, 3, 4), _random(4, 5, seed=1))),
  "tied head": (attend_table, lambda x, w: x @ w.T, (_random(2, 3, 4), _random(6, 4, seed=1))),
  "rms_norm": (
    lambda x, s: rms_norm(x, s, 1e-5),
    lambda x, s: x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * s,
    (_random(2, 3, 8), _random(8, seed=1)),
  ),
  "layer_norm": (
    lambda x, s, b: layer_norm(x, s, b, 1e-5),
    lambda x, s, b: (
      (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * s + b
    ),
    (_random(2, 3, 8), _random(8, seed=1), _random(8, seed=2)),
  ),
  "gelu": (gelu, lambda x: jax.nn.gelu(x, approximate=False), (4 * _random(3, 8),)),
  "swiglu": (swiglu, lambda g, u: jax.nn.silu(g) * u, (_random(3, 8), _random(3, 8, seed=1))),
  "attention": (
    lambda q, k, v: attend(q, k, v, _visible()),
    lambda q, k, v: _plain_attention(q, k, v, _visible()),
    (_random(2, 3, 2, 5, 4), _random(2, 3, 7, 4, seed=1), _random(2, 3, 7, 4, seed=2)),
  ),
  "attention with a cap": (
    lambda q, k, v: attend(q, k, v, _visible(), scale=0.8, softcap=1.5),
    lambda q, k, v: _plain_attention(q, k, v, _visible(), 0.8, 1.5),
    (_random(2, 3, 2, 5, 4), _random(2, 3, 7, 4, seed=1), _random(2, 3, 7, 4, seed=2)),
  ),
  "attention with a bias for all rows": (
    lambda q, k, v, b: attend(q, k, v, _visible(), bias=b, scale=0.8, softcap=1.5),
    lambda q, k, v, b: _plain_attention(q, k, v, _visible(), 0.8, 1.5, b),
    (
      _random(2, 3, 2, 5, 4),
      _random(2, 3, 7, 4, seed=1),
      _random(2, 3, 7, 4, seed=2),
      _random(1, 6, 5, 7, seed=3),
    ),
  ),
  "one query with a bias": (
    lambda q, k, v, b: attend_one(q, *_cached(k, v), _visible(s=1), bias=b),
    lambda q, k, v, b: _plain_attention(q, k, v, _visible(s=1), bias=b),
    (
      _random(2, 3, 2, 1, 4),
      _random(2, 3, 7, 4, seed=1),
      _random(2, 3, 7, 4, seed=2),
      _random(2, 6, 1, 7, seed=3),
    ),
  ),
  "attention of one query": (
    lambda q, k, v: attend_one(q, *_cached(k, v), _visible(s=1), scale=0.8, softcap=1.5),
    lambda q, k, v: _plain_attention(q, k, v, _visible(s=1), 0.8, 1.5),
    (_random(2, 3, 2, 1, 4), _random(2, 3, 7, 4, seed=1), _random(2, 3, 7, 4, seed=2)),
  ),
  "a bias of each row, in pieces": (
    lambda q, k, v, b: attend(q, k, v, _earlier(), bias=b, causal=True),
    lambda q, k, v, b: _plain_attention(q, k, v, _earlier(), bias=b),
    (
      _random(2, 1, 2, 300, 4),
      _random(2, 1, 303, 4, seed=1),
      _random(2, 1, 303, 4, seed=2),
      _random(2, 2, 300, 303, seed=3),
    ),
  ),
  "causal attention in pieces": (
    lambda q, k, v: attend(q, k, v, _earlier(), causal=True),
    lambda q, k, v: _plain_attention(q, k, v, _earlier()),
    (_random(1, 2, 2, 300, 4), _random(1, 2, 303, 4, seed=1), _random(1, 2, 303, 4, seed=2)),
  ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_derivative(name):
  ours, plain, args = CASES[name]
  np.testing.assert_allclose(ours(*args), plain(*args), atol=1e-5)
  weights = _random(*plain(*args).shape, seed=9)
  every = tuple(range(len(args)))
  got = jax.grad(lambda *a: (ours(*a) * weights).sum(), every)(*args)
  want = jax.grad(lambda *a: (plain(*a) * weights).sum(), every)(*args)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_runs_and_is_near(name):
  """Some layouts of bfloat16 products fail on CPUs only when they run."""
  ours, plain, args = CASES[name]
  half = tuple(a.astype(jnp.bfloat16) for a in args)
  value, pullback = jax.vjp(jax.jit(ours), *half)
  grads = pullback(jnp.ones_like(value))
  want, plain_pullback = jax.vjp(plain, *args)
  np.testing.assert_allclose(value.astype(jnp.float32), want, atol=0.1)
  for a, b in zip(grads, plain_pullback(jnp.ones_like(want)), strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.25)


def test_causal_mask_keeps_documents_apart():
  segments = jnp.array([[1, 1, 2, 2, 0]])
  want = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
  np.testing.assert_array_equal(mask.causal(segments)[0], np.array(want, bool))


def test_cached_mask_hides_empty_padding_and_later_slots():
  visible = mask.cached(jnp.array([[1, -1]]), jnp.array([[-1, 0, 1, 2, -1]]))
  np.testing.assert_array_equal(visible[0], np.array([[0, 1, 1, 0, 0], [0] * 5], bool))


def test_a_known_prefix_is_seen_both_ways():
  segments = jnp.array([[1, 1, 1, 2, 2, 2, 0]])
  known = jnp.array([[True, True, False, True, False, False, False]])
  visible = mask.causal(segments, known)
  for i in range(7):
    for j in range(7):
      same = segments[0, i] == segments[0, j]
      assert visible[0, i, j] == (same and (j <= i or known[0, j])), (i, j)
  np.testing.assert_array_equal(
    mask.causal(segments, jnp.zeros((1, 7), bool)), mask.causal(segments)
  )


def test_window_counts_the_query_itself():
  positions = jnp.array([[0, 1, 2, 0, 1]])
  visible = mask.within(mask.causal(jnp.array([[1, 1, 1, 2, 2]])), positions, positions, 2)
  want = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
  np.testing.assert_array_equal(visible[0], np.array(want, bool))
