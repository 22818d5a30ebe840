"""ALiBi and T5's buckets against transformers', and rows against positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from research.nn import bias
from research.nn.positions import sinusoidal


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12, 20])
def test_slopes_are_blooms(heads):
  theirs = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]  # at position 1
  np.testing.assert_allclose(bias.alibi_slopes(heads), theirs, rtol=1e-6)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 20), (64, 500)])
def test_buckets_are_t5s(bidirectional, buckets, longest):
  distances = np.arange(-1200, 1200)
  settings = {"bidirectional": bidirectional}
  ours = bias.relative_buckets(distances, buckets=buckets, longest=longest, **settings)
  theirs = T5Attention._relative_position_bucket(
    torch.tensor(distances), num_buckets=buckets, max_distance=longest, **settings
  )
  np.testing.assert_array_equal(ours, theirs)


def test_rows_and_positions_say_the_same():
  """And so do their derivatives: a sum over lines, and additions one by one."""
  table = jax.random.normal(jax.random.key(0), (8, 3))
  module = bias.RelativeBias(3, True, 8, 20)

  def of(table):
    return lambda distances: module.apply({"params": {"embedding": table}}, distances)

  def rows(table):
    return bias.in_rows(of(table), 5, 7)

  def positions(table):
    places = jnp.arange(7)[None]
    return bias.in_cache(of(table), places[:, :5], places)

  np.testing.assert_array_equal(rows(table), positions(table))
  weights = jax.random.normal(jax.random.key(1), (1, 3, 5, 7))
  got, want = (jax.grad(lambda t, f=f: (f(t) * weights).sum())(table) for f in (rows, positions))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_alibi_falls_with_distance():
  found = bias.in_rows(bias.alibi(4), 6, 6)[0]
  i = np.arange(6)
  plain = -np.abs(i[None, :] - i[:, None]) * np.array([0.25, 0.0625, 2**-6, 2**-8])[:, None, None]
  np.testing.assert_allclose(found, plain, rtol=1e-6)


def test_sinusoids():
  positions = np.array([[0, 1, 2, 700]])
  found = sinusoidal(jnp.asarray(positions), 10)
  for place, position in enumerate(positions[0]):
    for i in range(5):
      angle = position / 10_000 ** (2 * i / 10)
      pair = [np.sin(angle), np.cos(angle)]
      np.testing.assert_allclose(found[0, place, 2 * i : 2 * i + 2], pair, atol=1e-4)
