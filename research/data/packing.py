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


def best_fit_pairs(
  lengths: Sequence[tuple[int, int]], capacity: tuple[int, int]
) -> list[list[int]]:
  """Best-fit decreasing packing of pairs into bins with room for both of their sides.

  Each pair, the one with the largest share of a side first, goes to the bin in which it leaves
  the least room, as shares of both sides together. A function of its arguments.

  Args:
    lengths: of sources and targets, each from 1 to its capacity.
    capacity: of a bin's sides.

  Returns:
    As `best_fit`.
  """
  shares = np.reshape(lengths, (-1, 2)) / capacity  # [N, 2]
  space = np.ones((len(lengths), 2))
  bins: list[list[int]] = []
  for index in np.argsort(-shares.max(axis=1), kind="stable"):
    # Shares are quotients: what fits exactly must not fail by their rounding.
    left = space[: len(bins) + 1] - shares[index]
    fits = np.all(left > -1e-9, axis=1)
    chosen = int(np.argmin(np.where(fits, left.sum(axis=1), np.inf)))
    if chosen == len(bins):
      bins.append([])
    bins[chosen].append(int(index))
    space[chosen] = left[chosen]
  return [sorted(indices) for indices in bins]


def packed_rows(
  examples: Sequence[Example], capacity: tuple[int, int], rng: np.random.Generator | None
) -> list[list[Example]]:
  """Rows of whole documents or pairs in random order; without `rng`, by their first one.

  Args:
    capacity: the most tokens of a row, of sources and of what a decoder reads; documents have no
      sources, and 0.
  """
  if capacity[0]:
    bins = best_fit_pairs([sides(example) for example in examples], capacity)
  else:
    bins = best_fit([len(example) for example in examples], capacity[1])
  order = sorted(range(len(bins)), key=lambda b: bins[b][0])
  if rng is not None:
    order = [int(b) for b in rng.permutation(order)]
  return [[examples[index] for index in bins[b]] for b in order]


def sides(example: Example) -> tuple[int, int]:
  """The tokens of its source, of which a document has none, and of its target.

  Of two answers, which have a row each, those of the longer one.
  """
  rival = 0 if example.rival is None else len(example.rival)
  return 0 if example.source is None else len(example.source), max(len(example), rival)


def rows_by_length(
  examples: Sequence[Example], batch_size: int, rng: np.random.Generator | None
) -> list[list[Example]]:
  """Rows of one document each, such that every `batch_size` in a row are of like length.

  With `rng` the batches are in random order, and only the number of examples being a
  multiple of `batch_size` keeps them whole; without it the longest come first.
  """
  order = sorted(range(len(examples)), key=lambda i: -sum(sides(examples[i])))
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
  kept: int = 0,
) -> dict[str, np.ndarray]:
  """The batch of docs/architecture.md; an empty row is all padding.

  Args:
    rows: B rows of documents.
    length: S.
    pad_id: the token at padding and the target where there is none.
    also: numbers of an example that each of its tokens tells; 0 at padding.
    form: `form_of` the whole batch, of which these may be a host's rows.
    kept: K, how many tokens were kept of a teacher at each.

  Returns:
    `tokens`, `segments`, `positions`, those of `form` and `also` int32 and `weights` float32,
    `[B, S]`; with `kept` also `teacher_ids` int32 and `teacher_log_probs` float16, `[B, S, K]`.
  """
  shape = (len(rows), length)
  weights = np.zeros(shape, np.float32)
  own = {name: np.full(shape, pad_id if name == "targets" else 0, np.int32) for name in form}
  numbers = {name: np.zeros(shape, np.int32) for name in also}
  of_teacher: dict[str, np.ndarray] = {}
  if kept:
    of_teacher["teacher_ids"] = np.zeros((*shape, kept), np.int32)
    of_teacher["teacher_log_probs"] = np.zeros((*shape, kept), np.float16)
  tokens, segments, positions = place(
    [[part for example in row for part in _parts(example)] for row in rows], length, pad_id
  )
  for r, row in enumerate(rows):
    start = 0
    for example in row:
      end = start + len(example)
      if form[0] == "targets":
        # A virtual token is no target, and no index into logits either.
        own["targets"][r, start : end - 1] = np.maximum(example.tokens[1:], 0)
        weights[r, start : end - 1] = example.weights_mask[1:]
      else:
        weights[r, start:end] = example.weights_mask
      for name in form:
        if name in ("labels", "types"):
          own[name][r, start:end] = getattr(example, name)
        elif name == "roles":
          own[name][r, start:end] = np.repeat(range(1, 1 + len(example.parts)), example.parts)
      for name, array in numbers.items():
        array[r, start:end] = getattr(example, name)
      if example.kept is not None:
        of_teacher["teacher_ids"][r, start:end] = example.kept[0]
        of_teacher["teacher_log_probs"][r, start:end] = example.kept[1]
      start = end
  return {
    "tokens": tokens,
    "weights": weights,
    "segments": segments,
    "positions": positions,
    **own,
    **numbers,
    **of_teacher,
  }


def assemble_sources(
  rows: Sequence[Sequence[Example]], length: int, pad_id: int
) -> dict[str, np.ndarray]:
  """What a batch of pairs has beside `assemble`'s: the sources, with their targets' segments.

  Args:
    rows: B rows of pairs.
    length: S' of the sources.
    pad_id: the token at padding.

  Returns:
    `source_tokens`, `source_segments` and `source_positions`, int32 `[B, S']`.
  """
  names = ("source_tokens", "source_segments", "source_positions")
  sources = [[e.source for e in row if e.source is not None] for row in rows]
  return dict(zip(names, place(sources, length, pad_id), strict=True))


def told(rows: Sequence[Sequence[Example]], names: Sequence[str]) -> dict[str, np.ndarray]:
  """What the one example of each row tells of itself, `[B]`; of an empty row 0, and row -1.

  Args:
    rows: B rows of one example or none.
    names: of numbers that examples tell.

  Returns:
    Those, float32, and `row` int32, the number of the example's row in its source.
  """
  ones = [row[0] if row else None for row in rows]
  found = {
    name: np.array([0.0 if one is None else one.told[name] for one in ones], np.float32)
    for name in names
  }
  return found | {"row": np.array([-1 if one is None else one.row for one in ones], np.int32)}


def _parts(example: Example) -> list[np.ndarray]:
  """The documents of an example: anchor, positive and negative of one, or itself."""
  return (
    np.split(example.tokens, np.cumsum(example.parts)[:-1]) if example.parts else [example.tokens]
  )


def place(
  rows: Sequence[Sequence[np.ndarray]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Documents one after the other: their tokens, segments and positions, int32 `[B, length]`.

  Raises:
    ValueError: a row's are longer.
  """
  shape = (len(rows), length)
  tokens = np.full(shape, pad_id, np.int32)
  segments = np.zeros(shape, np.int32)
  positions = np.zeros(shape, np.int32)
  for r, row in enumerate(rows):
    start = 0
    for number, document in enumerate(row, start=1):
      end = start + len(document)
      if end > length:
        raise ValueError(f"row {r} has {sum(map(len, row))} tokens; the batch holds {length}")
      tokens[r, start:end] = document
      segments[r, start:end] = number
      positions[r, start:end] = np.arange(len(document))
      start = end
  return tokens, segments, positions
