"""Which prompts run together, and in what shape.

Every shape is a program to compile, so lengths and numbers of rows come in powers of two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

SHORTEST = 32


def bucket(length: int, shortest: int = SHORTEST) -> int:
  """The smallest power of two, from `shortest` on, that holds `length`."""
  return max(shortest, 1 << (length - 1).bit_length())


def slots(tokens: int) -> int:
  """Slots of a cache for `tokens`: a multiple of what vector units take at once."""
  return -(-tokens // 16) * 16


@dataclasses.dataclass(frozen=True)
class Batch:
  """Prompts that run together, each with `samples` rows one after the other.

  Invariant: padding is on the left, so that all rows write one slot of the cache at a time;
  its positions are -1. Rows whose `prompt` is -1 are padding too.

  tokens, positions: int32 `[R, P]`.
  prompt, first_sample: int32 `[R]`: the number of the prompt, and of the first of its samples.
  samples: of each prompt.
  """

  tokens: np.ndarray
  positions: np.ndarray
  prompt: np.ndarray
  first_sample: np.ndarray
  samples: int


def batches(
  prompts: Sequence[Sequence[int]], *, samples: int, batch_size: int, pad_id: int
) -> Iterator[Batch]:
  """Covers every sample of every prompt, longest prompts first, in `batch_size` rows at most.

  The longest come first so that what does not fit in memory fails at once.
  """
  width = min(samples, batch_size)
  items = [
    (i, first)
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for first in range(0, samples, width)
  ]
  most = max(1, batch_size // width)
  for start in range(0, len(items), most):
    yield _batch(prompts, items[start : start + most], most, width, pad_id)


def _batch(prompts, items, most, width, pad_id):
  rows = min(most, bucket(len(items), shortest=1))
  tokens, positions = padded([prompts[i] for i, _ in items], rows, pad_id)
  prompt = np.full((rows,), -1, np.int32)
  first_sample = np.zeros((rows,), np.int32)
  for row, (i, first) in enumerate(items):
    prompt[row], first_sample[row] = i, first
  return Batch(tokens, positions, prompt, first_sample, width)


def padded(
  prompts: Sequence[Sequence[int]], rows: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Prompts as the first of so many rows, padded on the left to a power of two.

  Returns:
    Tokens and positions, int32 `[R, P]`; positions are -1 at padding.
  """
  length = bucket(max(map(len, prompts)))
  tokens = np.full((rows, length), pad_id, np.int32)
  positions = np.full((rows, length), -1, np.int32)
  for row, prompt in enumerate(prompts):
    tokens[row, length - len(prompt) :] = prompt
    positions[row, length - len(prompt) :] = np.arange(len(prompt))
  return tokens, positions
