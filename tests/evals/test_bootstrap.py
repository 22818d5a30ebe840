"""Intervals against closed forms and against enumerating every draw."""

import itertools
import math

import numpy as np
import pytest

from research.evals import bootstrap


def test_interval_of_a_mean_is_the_normal_one_for_many_items():
  values = np.random.default_rng(0).gamma(2.0, 3.0, 2_000)
  half = 1.96 * values.std() / math.sqrt(values.size)
  low, high = bootstrap.interval(values, seed=1)
  np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], rtol=0.01)


def test_interval_is_that_of_all_draws_of_few_items():
  values = np.array([0.0, 1.0, 3.0, 7.0, 12.0])
  means = [np.mean(draw) for draw in itertools.product(values, repeat=5)]
  expected = np.percentile(means, [2.5, 97.5])
  got = bootstrap.interval(values, resamples=100_000)
  np.testing.assert_allclose(got, expected, atol=0.25)  # the means lie 0.2 apart


def test_paired_difference_uses_the_variance_of_differences():
  rng = np.random.default_rng(2)
  b = rng.normal(0, 10, 1_500)  # items differ much more than the two models do
  a = b + rng.normal(0.3, 1, b.size)
  differences = a - b
  half = 1.96 * differences.std() / math.sqrt(b.size)
  difference, low, high = bootstrap.paired(a, b, seed=3)
  assert difference == pytest.approx(differences.mean(), rel=1e-12)
  assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.1 * half)
  assert high - low < 0.1 * np.subtract(*bootstrap.interval(a)[::-1])


def test_weighted_mean_is_a_ratio_of_sums():
  rng = np.random.default_rng(4)
  weights = rng.integers(1, 100, 2_000).astype(float)
  values = weights * rng.normal(2, 0.5, weights.size)
  ratio = values.sum() / weights.sum()
  # The delta method's variance of a ratio of means (Cochran 1977, 2.46).
  half = 1.96 * (values - ratio * weights).std() / weights.mean() / math.sqrt(weights.size)
  low, high = bootstrap.interval(values, weights, seed=5)
  assert (low, high) == pytest.approx((ratio - half, ratio + half), abs=0.1 * half)
  difference, *_ = bootstrap.paired(values, values / 2, weights=weights)
  assert difference == pytest.approx(ratio / 2)


def test_same_seed_same_interval():
  values = np.arange(50.0)
  assert bootstrap.interval(values, seed=6) == bootstrap.interval(values, seed=6)
  assert bootstrap.interval(values, seed=6) != bootstrap.interval(values, seed=7)


def test_equal_results_differ_by_nothing():
  assert bootstrap.paired([1, 0, 1], [1, 0, 1]) == (0.0, 0.0, 0.0)


def test_draws_without_weight_are_left_out():
  low, high = bootstrap.interval([0.0, 3.0], [0.0, 1.0])
  assert (low, high) == (3.0, 3.0)


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (7, 20), (20, 20), (300, 1000)])
def test_wilson_ends_are_one_standard_score_away(successes, trials):
  share = successes / trials
  for end in bootstrap.wilson(successes, trials):
    # The interval's definition: |share - p| = z * sqrt(p * (1 - p) / n), or p = share.
    distance = 1.959963984540054 * math.sqrt(end * (1 - end) / trials)
    assert abs(share - end) == pytest.approx(distance, abs=1e-12)


@pytest.mark.parametrize(
  "call",
  [
    lambda: bootstrap.interval([]),
    lambda: bootstrap.interval([1.0], [1.0, 2.0]),
    lambda: bootstrap.interval([1.0]),
    lambda: bootstrap.interval([1.0, 2.0], [0.0, 0.0]),
    lambda: bootstrap.interval([1.0, 2.0], [1.0, -1.0]),
    lambda: bootstrap.paired([1.0, 2.0], [1.0]),
    lambda: bootstrap.wilson(3, 2),
    lambda: bootstrap.wilson(0, 0),
  ],
)
def test_impossible_samples_are_refused(call):
  with pytest.raises(ValueError):
    call()
