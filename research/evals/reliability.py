"""Whether something is as often right as it is sure: confidences in bins, and how far they are off.

N judgements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Table = list[dict[str, float]]


def table(confidence: np.ndarray, right: np.ndarray, *, bins: int, low: float = 0.0) -> Table:
  """Bins of equal width from `low` to 1 (Guo et al. 2017, arXiv:1706.04599, section 2).

  Args:
    confidence: `[N]`, from `low` to 1; the upper end of a bin is the next one's, but for 1.
    right: bool `[N]`.

  Returns:
    A row a bin: its ends `from` and `to`, the mean `confidence` and `accuracy` of what is in it
    (0 where nothing is), and `count`.
  """
  place = (confidence.astype(np.float64) - low) / (1 - low) * bins
  number = np.clip(place.astype(int), 0, bins - 1)
  count = np.bincount(number, minlength=bins)
  over = np.maximum(count, 1)
  sure = np.bincount(number, confidence, minlength=bins) / over
  true = np.bincount(number, right, minlength=bins) / over
  ends = np.linspace(low, 1, bins + 1)
  return [
    {
      "from": float(ends[i]),
      "to": float(ends[i + 1]),
      "confidence": float(sure[i]),
      "accuracy": float(true[i]),
      "count": int(count[i]),
    }
    for i in range(bins)
  ]


def calibration_error(rows: Sequence[Mapping[str, float]]) -> float:
  """The expected calibration error of a `table`, which is not empty.

  The mean over judgements of how far accuracy is from confidence in their bin (Naeini et al. 2015;
  Guo et al. 2017, eq. 3).
  """
  apart = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in rows)
  return apart / sum(row["count"] for row in rows)
