"""Ranges of activations by what was counted, against the same of all numbers at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.dot import dot
from research.quant import qarray
from research.quant.ranges import Magnitudes
from research.quant.scheme import Scheme

RNG = np.random.default_rng(0)
# Rows of padding have the largest numbers, and the first batch one beyond all others that count.
WEIGHTS = jnp.asarray(RNG.integers(0, 2, (8, 64)), jnp.float32).at[0, :2].set([1, 0])
_NUMBERS = [jnp.asarray(RNG.uniform(-1, 1, (8, 64, 512)), jnp.bfloat16) for _ in range(2)]
BATCHES = [x.at[0, 1].set(9.0) for x in (_NUMBERS[0].at[0, 0, 0].set(-2.0), _NUMBERS[1])]
STATIC = Scheme("int8", activations="int8", range="absmax")


@pytest.fixture(scope="module")
def seen():
  found = Magnitudes.none()
  for x in BATCHES:
    found = found.expecting(WEIGHTS).observe(x=x, kernel=None)
  return found


@pytest.fixture(scope="module")
def sizes():
  """Of each batch, the numbers of rows that count."""
  return [np.abs(np.asarray(x, np.float64))[np.asarray(WEIGHTS) > 0].ravel() for x in BATCHES]


def _limit(seen, **how):
  return float(seen.scale(dataclasses.replace(STATIC, **how))) * 127


def test_the_largest_and_the_mean_of_batches_largest(seen, sizes):
  peaks = [batch.max() for batch in sizes]
  assert peaks[0] != peaks[1]
  assert _limit(seen) == pytest.approx(max(peaks), rel=1e-6)
  assert _limit(seen, range="average") == pytest.approx(sum(peaks) / 2, rel=1e-6)


@pytest.mark.parametrize("percentile", [25.0, 90.0, 99.0, 100.0])
def test_percentiles_are_exact_of_bfloat16(seen, sizes, percentile):
  wanted = np.percentile(np.concatenate(sizes), percentile, method="inverted_cdf")
  assert _limit(seen, range="percentile", percentile=percentile) == pytest.approx(wanted, rel=1e-6)


def test_the_error_is_least_of_all_shares(seen, sizes):
  numbers = np.concatenate(sizes)

  def error(limit):
    scale = limit / 127
    return np.sum((np.clip(np.round(numbers / scale), -127, 127) * scale - numbers) ** 2)

  found = _limit(seen, range="mse")
  tried = np.linspace(0.9, 2, 100)
  assert error(found) <= 1.05 * min(map(error, tried)) < 0.8 * error(2.0)


def test_nothing_and_numbers_that_are_none_are_told(seen):
  with pytest.raises(ValueError, match="has no tokens"):
    Magnitudes.none().scale(STATIC)
  bad = seen.expecting(WEIGHTS).observe(x=BATCHES[0].at[:, :, 0].set(jnp.nan))
  with pytest.raises(ValueError, match="are not finite"):
    bad.scale(STATIC)


def test_a_product_rounds_by_the_one_scale_and_clips():
  """Against the same in float64; the gradient is that of rows with scales of their own."""
  x = jnp.asarray(RNG.normal(size=(5, 16)), jnp.float32).at[0, 0].set(9.0)
  kernel = jnp.asarray(RNG.normal(size=(16, 6)), jnp.float32)
  free = qarray.quantize(kernel, STATIC)
  held = free.replace(inputs=jnp.float32(0.02))
  units = np.clip(np.round(np.asarray(x, np.float64) / np.float32(0.02)), -127, 127)
  wanted = units * np.float64(np.float32(0.02)) @ np.asarray(held.astype(jnp.float32), np.float64)
  y, back = jax.vjp(lambda x: dot(x, held), x)
  np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
  assert units.max() == 127
  dx = jax.vjp(lambda x: dot(x, free), x)[1](y)
  np.testing.assert_array_equal(back(y)[0], dx[0])


@pytest.mark.parametrize(
  ("how", "told"),
  [
    ({"range": "mean"}, "range 'mean' is unknown"),
    ({"range": "mse", "activations": ""}, "range 'mse' is of rounded activations"),
    ({"range": "mse", "outliers": 2}, "without outliers"),
    ({"percentile": 99.0}, "percentile 99.0 is of range 'percentile'"),
    ({"range": "percentile", "percentile": 101.0}, "at most 100"),
  ],
)
def test_what_cannot_be_is_told(how, told):
  with pytest.raises(ValueError, match=told):
    dataclasses.replace(STATIC, **how)
