"""Products of integers and kernels that train on a grid, against the same in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import quant
from research.core.dot import dot
from research.quant import integer, qarray
from research.quant.scheme import Scheme
from research.quant.trained import Trained

ROWS, IN, OUT = 40, 64, 24
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, ROWS // 2, IN)), jnp.float32)
W = jnp.asarray(RNG.normal(size=(IN, OUT)), jnp.float32)
G = jnp.asarray(RNG.normal(size=(2, ROWS // 2, OUT)), jnp.float32)
HOW = {"kind": "int8", "activations": "int8", "range": "mse"}
W8A8 = Scheme("int8", activations="int8")
ALL8 = Scheme("int8", activations="int8", gradients="int8")


def _rounded(x, axis=-1):
  """Each row's numbers on its int8 grid, in float64."""
  x = np.asarray(x, np.float32)
  scale = np.abs(x).max(axis=axis, keepdims=True) * np.float32(1 / 127)
  return np.clip(np.round(x * (1 / scale)), -127, 127).astype(np.float64) * scale


def _vjp(kernel):
  y, back = jax.vjp(lambda x: dot(x, kernel), X)
  return np.asarray(y), np.asarray(back(G)[0])


def test_a_product_is_that_of_what_was_rounded():
  held = qarray.quantize(W, W8A8)
  numbers = np.asarray(held.astype(jnp.float32), np.float64)
  y, dx = _vjp(held)
  np.testing.assert_allclose(y, _rounded(X) @ numbers, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dx, np.asarray(G, np.float64) @ numbers.T, rtol=1e-5, atol=1e-5)


def test_outliers_are_multiplied_as_they_are():
  """Columns with the largest numbers, wherever; rows' scales are of the others."""
  scheme = dataclasses.replace(W8A8, outliers=2)
  x = X.at[0, 3, 7].set(50.0).at[1, :, 20].mul(30)
  held = qarray.quantize(W, scheme)
  numbers = np.asarray(held.astype(jnp.float32), np.float64)
  rest = np.asarray(x).copy()
  rest[..., [7, 20]] = 0
  largest = np.asarray(x, np.float64)[..., [7, 20]]
  wanted = _rounded(rest) @ numbers + largest @ numbers[[7, 20]]
  np.testing.assert_allclose(dot(x, held), wanted, rtol=1e-5, atol=1e-4)
  apart = [np.abs(dot(x, qarray.quantize(W, s)) - x @ numbers).max() for s in (W8A8, scheme)]
  assert apart[1] < 0.2 * apart[0]
  with pytest.raises(ValueError, match="64 outliers are all of its 64 inputs"):
    dataclasses.replace(scheme, outliers=64).require_fits(IN, "a kernel")


def test_integers_are_summed_exactly():
  """Sums beyond what float32 tells apart, rounded once."""
  a, b = (jnp.asarray(RNG.integers(-127, 128, (4, 9000)), jnp.int8) for _ in range(2))
  exact = np.asarray(a, np.int64) @ np.asarray(b, np.int64).T
  np.testing.assert_array_equal(integer.matmul(a, b, (1, 1)), exact.astype(np.float32))


def test_weights_alone_lose_nothing_to_the_order_of_scales():
  held = qarray.quantize(W, Scheme("int8"))
  y, dx = _vjp(held)
  plain = held.astype(jnp.float32)
  np.testing.assert_allclose(y, X @ plain, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dx, G @ plain.T, rtol=1e-5, atol=1e-5)


def test_gradients_rounded_by_chance_keep_their_mean():
  """Over many draws the error is that of a mean, and not that of one rounding."""
  held = qarray.quantize(W, ALL8)
  exact = np.asarray(G) @ np.asarray(held.astype(jnp.float32)).T
  _, one = _vjp(held)
  step = np.abs(one - exact).std()
  assert 0 < step < 0.02 * exact.std()
  back = jax.jit(lambda g: qarray.backward(g, held, jnp.float32))
  # Numbers that differ in what is beyond rounding draw anew.
  draws = [back(G * (1 + 1e-6 * i)) for i in range(100)]
  assert np.abs(np.mean(draws, axis=0) - exact).std() < 0.2 * step


def test_rounding_by_chance_is_up_as_often_as_far():
  x = jnp.concatenate([jnp.full((1, 1), 127.0), jnp.full((1, 20_000), 3.3)], axis=1)
  codes, scale = integer.rows_at_random(x)
  assert float(scale[0, 0]) == pytest.approx(1)
  assert set(np.unique(codes[0, 1:])) == {3, 4}
  assert float(codes[0, 1:].mean()) == pytest.approx(3.3, abs=0.02)


@pytest.mark.parametrize(
  "scheme",
  [
    Scheme("int3", group=16),
    Scheme("nf4", group=16),
    W8A8,
    ALL8,
    Scheme("int8", activations="int8", outliers=3),
  ],
  ids=str,
)
def test_what_trains_acts_as_what_is_held(scheme):
  """Forward to the bit; gradients straight through, as if the rounded kernel were the numbers."""
  kernel = Trained(W, scheme)
  y, back = jax.vjp(lambda x, kernel: dot(x, kernel), X, kernel)
  held = kernel.held()
  np.testing.assert_array_equal(y, dot(X, held))
  dx, dkernel = back(G)
  np.testing.assert_array_equal(dx, _vjp(held)[1])
  whole = not scheme.activations or scheme.outliers
  seen = np.asarray(X, np.float64) if whole else _rounded(X)
  wanted = seen.reshape(-1, IN).T @ np.asarray(G, np.float64).reshape(-1, OUT)
  slack = 0.02 * wanted.std() if scheme.gradients else 1e-4
  assert np.abs(dkernel.values - wanted).max() < 4 * slack


def test_what_trains_acts_by_one_scale_of_activations():
  """Which is clipped to, and learns nothing; without a number nothing comes out."""
  scheme = Scheme("int8", activations="int8", range="mse")
  (stacked,) = jax.tree.leaves(quant.train({"up": {"kernel": W[None]}}, [{"target": ".*", **HOW}]),
                               is_leaf=lambda leaf: isinstance(leaf, Trained))  # fmt: skip
  assert stacked.scheme == scheme and np.isnan(stacked.inputs).all() and len(stacked.inputs) == 1
  assert np.isnan(dot(X, jax.tree.map(lambda leaf: leaf[0], stacked))).all()
  kernel = Trained(W, scheme, inputs=jnp.float32(0.01))
  y, back = jax.vjp(lambda x, kernel: dot(x, kernel), X, kernel)
  np.testing.assert_array_equal(y, dot(X, kernel.held()))
  assert kernel.held().inputs == kernel.inputs
  units = np.clip(np.round(np.asarray(X, np.float64) / np.float32(0.01)), -127, 127)
  assert np.abs(units).max() == 127
  seen = (units * np.float32(0.01)).reshape(-1, IN)
  _, dkernel = back(G)
  wanted = seen.T @ np.asarray(G, np.float64).reshape(-1, OUT)
  np.testing.assert_allclose(dkernel.values, wanted, atol=1e-4)
  assert dkernel.inputs == 0


def test_what_trained_is_held_bit_for_bit():
  params = {"layers": {"mlp": {"up_proj": {"kernel": jnp.stack([W, W + 1])}}}}
  rules = ({"target": ".*", "kind": "int3", "group": 16},)
  trained = quant.train(params, rules)
  held = quant.hold(trained)
  jax.tree.map(np.testing.assert_array_equal, held, quant.quantize(params, rules))
  acted = trained["layers"]["mlp"]["up_proj"]["kernel"].astype(jnp.float32)
  kernel = held["layers"]["mlp"]["up_proj"]["kernel"]
  np.testing.assert_array_equal(acted, kernel.astype(jnp.float32))


def test_numbers_that_are_used_as_an_array_learn_straight_through():
  kernel = Trained(W, Scheme("int4", group=16))
  gradient = jax.grad(lambda k: jnp.sum(k.astype(jnp.float32) * W))(kernel)
  np.testing.assert_array_equal(gradient.values, W)


@pytest.mark.parametrize(
  ("how", "told"),
  [
    ({"kind": "int8", "group": 16, "activations": "int8"}, "symmetric int8 without groups"),
    ({"kind": "int8", "activations": "int4"}, "activations 'int4' are unknown"),
    ({"kind": "int8", "gradients": "int8"}, "whose activations are"),
    ({"kind": "int8", "outliers": 4}, "outliers 4: how many inputs of rounded activations"),
  ],
)
def test_what_cannot_be_is_told(how, told):
  with pytest.raises(ValueError, match=told):
    Scheme(**how)


@pytest.mark.parametrize("scales", ["float32", "double"])
def test_rows_of_a_table_act_as_what_is_held(scales):
  """To the bit, also where rows share scales; each row learns as often as it was looked up."""
  sizes = jnp.linspace(0.1, 3, 128)[:, None]
  table = Trained(sizes * jax.random.normal(jax.random.key(0), (128, 64)),
                  Scheme("nf4", group=16, scales=scales), -1)  # fmt: skip
  ids = jnp.array([[3, 3, 120], [1, 2, 3]])
  acting, back = jax.vjp(lambda table: table.rows(ids), table)
  np.testing.assert_array_equal(acting, table.held().rows(ids))
  (gradient,) = back(jnp.ones_like(acting))
  counts = np.bincount(ids.ravel(), minlength=128)
  np.testing.assert_array_equal(gradient.values, np.broadcast_to(counts[:, None], (128, 64)))
