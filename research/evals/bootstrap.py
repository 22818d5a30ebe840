"""How far a figure measured on a sample of items may be from the truth.

Every figure is a weighted mean over items, `sum(values) / sum(weights)`, and the items are what
is drawn again: problems, or windows of text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

# Two-sided 95 % throughout.
_TAILS = (2.5, 97.5)
_NORMAL_QUANTILE = 1.959963984540054
_CHUNK_ELEMENTS = 2**22  # of the [resamples, items] draw held at a time


def interval(
  values: Sequence[float],
  weights: Sequence[float] | None = None,
  *,
  seed: int = 0,
  resamples: int = 10_000,
) -> tuple[float, float]:
  """The 95 % percentile interval of `sum(values) / sum(weights)` (Efron 1979).

  Args:
    values: one sum an item.
    weights: what each sum is over, by default 1; none below 0 and not all 0.
    seed: of the draws; the same arguments give the same interval.

  Raises:
    ValueError: there are fewer than two items, or values and weights do not match.
  """
  checked, over = _checked(values, weights)
  return _percentiles(_resampled(checked[None], over, seed, resamples)[0])


def interval_of(
  figure: Callable[[np.ndarray], np.ndarray],
  values: np.ndarray,
  *,
  seed: int = 0,
  resamples: int = 10_000,
) -> tuple[float, float]:
  """The 95 % percentile interval of a function of means over items.

  Args:
    figure: `[rows, draws]` -> `[draws]`, of the means of each draw.
    values: `[rows, items]`, at least two items.
  """
  return _percentiles(figure(_resampled(values, np.ones(values.shape[1]), seed, resamples)))


def paired(
  a: Sequence[float],
  b: Sequence[float],
  seed: int = 0,
  resamples: int = 10_000,
  weights: Sequence[float] | None = None,
) -> tuple[float, float, float]:
  """`mean(a) - mean(b)` over the same items, and its 95 % percentile interval.

  An item is drawn with both its values, so what makes items hard for both cancels out.

  Args:
    a, b: one sum an item, item by item.
    weights: what each sum is over, the same for both, by default 1.

  Returns:
    `(difference, low, high)`.

  Raises:
    ValueError: there are fewer than two items, or the lengths differ.
  """
  first, over = _checked(a, weights)
  second, _ = _checked(b, over)
  draws = _resampled(np.stack([first, second]), over, seed, resamples)
  difference = float((first.sum() - second.sum()) / over.sum())
  return difference, *_percentiles(draws[0] - draws[1])


def wilson(successes: int, trials: int) -> tuple[float, float]:
  """The 95 % score interval of a share (Wilson 1927); sound at 0 and 1, where a bootstrap is not.

  Raises:
    ValueError: `trials` is 0, or `successes` is not within 0 and `trials`.
  """
  if not 0 <= successes <= trials or trials == 0:
    raise ValueError(f"{successes} successes in {trials} trials are no share")
  z, share = _NORMAL_QUANTILE, successes / trials
  scale = 1 + z * z / trials
  center = (share + z * z / (2 * trials)) / scale
  half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
  # At the ends the two terms are equal but for rounding.
  low = 0.0 if successes == 0 else center - half
  high = 1.0 if successes == trials else center + half
  return low, high


def _checked(
  values: Sequence[float] | np.ndarray, weights: Sequence[float] | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
  """Both as float64 `[items]`."""
  sums = np.asarray(values, np.float64)
  over = np.ones_like(sums) if weights is None else np.asarray(weights, np.float64)
  if sums.ndim != 1 or sums.size < 2 or sums.shape != over.shape:
    raise ValueError(
      f"an interval needs at least two items, each with a value and a weight, not shapes "
      f"{sums.shape} and {over.shape}"
    )
  if (over < 0).any() or not over.any():
    raise ValueError("weights must be 0 or more, and not all 0")
  return sums, over


def _resampled(values: np.ndarray, weights: np.ndarray, seed: int, resamples: int) -> np.ndarray:
  """Weighted means `[rows, resamples]` of `values [rows, items]`; the rows share each draw."""
  rng = np.random.default_rng(seed)
  items = weights.size
  at_a_time = max(1, _CHUNK_ELEMENTS // items)
  means = []
  for start in range(0, resamples, at_a_time):
    draw = rng.integers(items, size=(min(at_a_time, resamples - start), items))
    totals = weights[draw].sum(axis=1)
    # A draw of items without weight says nothing; only where most weights are 0 is there one.
    kept = draw[totals > 0]
    means.append(values[:, kept].sum(axis=2) / totals[totals > 0])
  return np.concatenate(means, axis=1)


def _percentiles(draws: np.ndarray) -> tuple[float, float]:
  low, high = np.percentile(draws, _TAILS)
  return float(low), float(high)
