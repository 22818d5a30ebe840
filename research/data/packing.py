"""Documents into rows of a batch: best-fit packing, padding, and the arrays.

Axis legend: B rows of the batch, S tokens of a row.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from research.data.examples import Example


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """Best-fit decreasing bin packing.

  Each length, the longest first, goes to the bin it leaves the least room in. The number
  of bins is at most 11/9 of the fewest possible plus one (Johnson, 1973). Ties go by
  index, so the result is a function of its arguments.

  Args:
    lengths: of the documents, in tokens, each from 1 to `capacity`.
    capacity: of a bin.

  Returns:
    For each bin the indices it holds, ascending; every index in exactly one bin.

  Raises:
    ValueError: a length is not in 1 … `capacity`.
  """
  bins: list[list[int]] = []
  spaces: list[int] = []  # the distinct free spaces, ascending
  with_space: dict[int, list[int]] = defaultdict(list)
  for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    size = lengths[index]
    if not 1 <= size <= capacity:
      raise ValueError(f"document {index} has {size} tokens; a row holds 1 to {capacity}")
    at = bisect.bisect_left(spaces, size)
    if at == len(spaces):
      space, chosen = capacity, len(bins)
      bins.append([])
    else:
      space = spaces[at]
      chosen = with_space[space].pop()
      if not with_space[space]:
        del spaces[at]
    bins[chosen].append(index)
    if left := space - size:
      if not with_space[left]:
        bisect.insort(spaces, left)
      with_space[left].append(chosen)
  return [sorted(indices) for indices in bins]


def packed_rows(
  examples: Sequence[Example], length: int, rng: np.random.Generator | None
) -> list[list[Example]]:
  """Rows of whole documents, at most `length` tokens each, in random order.

  Without `rng` the rows go by their first document.
  """
  bins = best_fit([len(example) for example in examples], length)
  order = sorted(range(len(bins)), key=lambda b: bins[b][0])
  if rng is not None:
    order = [int(b) for b in rng.permutation(order)]
  return [[examples[index] for index in bins[b]] for b in order]


def rows_by_length(
  examples: Sequence[Example], batch_size: int, rng: np.random.Generator | None
) -> list[list[Example]]:
  """Rows of one document each, such that every `batch_size` in a row are of like length.

  With `rng` the batches are in random order, and only the number of examples being a
  multiple of `batch_size` keeps them whole; without it the longest come first.
  """
  order = sorted(range(len(examples)), key=lambda i: -len(examples[i]))
  batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
  if rng is not None:
    batches = [batches[b] for b in rng.permutation(len(batches))]
  return [[examples[index]] for batch in batches for index in batch]


def bucket(length: int, buckets: Sequence[int]) -> int:
  """The smallest of the ascending `buckets` that holds `length` tokens."""
  at = bisect.bisect_left(buckets, length)
  if at == len(buckets):
    raise ValueError(f"a row of {length} tokens fits none of the buckets {tuple(buckets)}")
  return buckets[at]


def form_of(rows: Sequence[Sequence[Example]]) -> tuple[str, ...]:
  """The `form` that all documents of a batch have.

  Raises:
    ValueError: they have several.
  """
  forms = {example.form for row in rows for example in row}
  if len(forms) > 1:
    told = " and ".join(sorted("+".join(form) for form in forms))
    raise ValueError(f"a batch has documents of one kind, not some with {told}; train on one kind")
  return forms.pop() if forms else ("targets",)


def assemble(
  rows: Sequence[Sequence[Example]],
  length: int,
  pad_id: int,
  also: Sequence[str] = (),
  form: tuple[str, ...] = ("targets",),
) -> dict[str, np.ndarray]:
  """The batch of docs/architecture.md; an empty row is all padding.

  Args:
    rows: B rows of documents.
    length: S.
    pad_id: the token at padding and the target where there is none.
    also: numbers of an example that each of its tokens tells; 0 at padding.
    form: `form_of` the whole batch, of which these may be a host's rows.

  Returns:
    `tokens`, `segments`, `positions`, those of `form` and `also` int32 and `weights` float32,
    `[B, S]`.
  """
  shape = (len(rows), length)
  tokens = np.full(shape, pad_id, np.int32)
  weights = np.zeros(shape, np.float32)
  segments = np.zeros(shape, np.int32)
  positions = np.zeros(shape, np.int32)
  own = {name: np.full(shape, pad_id if name == "targets" else 0, np.int32) for name in form}
  numbers = {name: np.zeros(shape, np.int32) for name in also}
  for r, row in enumerate(rows):
    start = number = 0
    for example in row:
      end = start + len(example)
      if end > length:
        raise ValueError(f"row {r} has {sum(map(len, row))} tokens; the batch holds {length}")
      tokens[r, start:end] = example.tokens
      if form[0] == "targets":
        own["targets"][r, start : end - 1] = example.tokens[1:]
        weights[r, start : end - 1] = example.weights_mask[1:]
      else:
        weights[r, start:end] = example.weights_mask
      for name in form:
        if name in ("labels", "types"):
          own[name][r, start:end] = getattr(example, name)
      at = start
      for role, size in enumerate(example.parts or (len(example),), start=1):
        number += 1
        segments[r, at : at + size] = number
        positions[r, at : at + size] = np.arange(size)
        if example.parts:
          own["roles"][r, at : at + size] = role
        at += size
      for name, array in numbers.items():
        array[r, start:end] = getattr(example, name)
      start = end
  return {
    "tokens": tokens,
    "weights": weights,
    "segments": segments,
    "positions": positions,
    **own,
    **numbers,
  }
