"""Packing invariants against the documents themselves, and arrays against a slow plain version."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data import packing
from research.data.examples import Example

# The machine may be busy: no test here is about time.
settings.register_profile("packing", deadline=None)
settings.load_profile("packing")

CAPACITY = 32
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=60)


def documents(lengths):
  """Documents whose tokens are unique over all of them, so that each can be traced."""
  starts = np.cumsum([1, *lengths])
  return [
    Example(np.arange(a, b, dtype=np.int32), np.arange(a, b) % 3 > 0)
    for a, b in zip(starts, starts[1:], strict=False)
  ]


def plain_batch(rows, length, pad):
  """The batch of docs/architecture.md, a token at a time."""
  keys = ("tokens", "targets", "weights", "segments", "positions")
  batch = {key: [] for key in keys}
  for row in rows:
    slots = []
    for number, example in enumerate(row, start=1):
      for t, token in enumerate(example.tokens):
        last = t == len(example) - 1
        following = pad if last else example.tokens[t + 1]
        learnt = 0 if last else float(example.weights_mask[t + 1])
        slots.append((token, following, learnt, number, t))
    slots += [(pad, pad, 0, 0, 0)] * (length - len(slots))
    for key, column in zip(keys, zip(*slots, strict=True), strict=True):
      batch[key].append(column)
  return batch


@given(LENGTHS)
def test_best_fit_loses_splits_and_overfills_nothing(lengths):
  bins = packing.best_fit(lengths, CAPACITY)
  assert sorted(i for indices in bins for i in indices) == list(range(len(lengths)))
  assert all(sum(lengths[i] for i in indices) <= CAPACITY for indices in bins)
  # No two bins would fit in one.
  sums = sorted(sum(lengths[i] for i in indices) for indices in bins)
  assert len(sums) < 2 or sums[0] + sums[1] > CAPACITY


@given(LENGTHS)
def test_best_fit_matches_the_slow_version(lengths):
  spaces = []
  for size in sorted(lengths, reverse=True):
    fitting = [b for b, space in enumerate(spaces) if space >= size]
    if fitting:
      spaces[min(fitting, key=lambda b: spaces[b])] -= size
    else:
      spaces.append(CAPACITY - size)
  bins = packing.best_fit(lengths, CAPACITY)
  assert sorted(CAPACITY - sum(lengths[i] for i in b) for b in bins) == sorted(spaces)


@pytest.mark.parametrize("size", [0, 33])
def test_best_fit_refuses_what_no_row_holds(size):
  with pytest.raises(ValueError, match=f"document 1 has {size} tokens; a row holds 1 to 32"):
    packing.best_fit([4, size], CAPACITY)


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.1])
def test_fill_on_conversation_lengths(sigma):
  lengths = np.random.default_rng(0).lognormal(np.log(180), sigma, 2000).astype(int).clip(2, 1024)
  bins = packing.best_fit(lengths.tolist(), 1024)
  assert lengths.sum() / (len(bins) * 1024) >= 0.95


@given(LENGTHS, st.integers(0, 3))
def test_packed_batches_hold_every_document_whole(lengths, seed):
  examples = documents(lengths)
  rows = packing.packed_rows(examples, (0, CAPACITY), np.random.default_rng(seed))
  batch = packing.assemble(rows, CAPACITY, pad_id=0)
  found = []
  for r in range(len(rows)):
    segments = batch["segments"][r]
    used = np.count_nonzero(segments)
    # Contiguous from 1, padding only at the end.
    assert not segments[used:].any() and set(np.diff(segments[:used])) <= {0, 1}
    assert used and segments[0] == 1
    for number in range(1, segments.max() + 1):
      at = np.flatnonzero(segments == number)
      found.append(tuple(batch["tokens"][r, at]))
      assert batch["positions"][r, at].tolist() == list(range(len(at)))
      assert batch["targets"][r, at[:-1]].tolist() == batch["tokens"][r, at[1:]].tolist()
      assert batch["weights"][r, at[-1]] == 0
  assert sorted(found) == sorted(tuple(example.tokens) for example in examples)
  assert batch["weights"].sum() == sum(example.weights_mask[1:].sum() for example in examples)


@given(LENGTHS)
def test_arrays_match_the_plain_version(lengths):
  rows = packing.packed_rows(documents(lengths), (0, CAPACITY), None) + [[]]
  batch = packing.assemble(rows, CAPACITY, pad_id=7)
  plain = plain_batch(rows, CAPACITY, 7)
  for key, array in batch.items():
    np.testing.assert_array_equal(array, plain[key], err_msg=key)
    assert array.dtype == (np.float32 if key == "weights" else np.int32)


def test_assemble_refuses_a_row_that_is_too_long():
  with pytest.raises(ValueError, match="row 0 has 5 tokens; the batch holds 4"):
    packing.assemble([documents([3, 2])], 4, 0)


def test_packed_rows_are_a_function_of_the_seed():
  examples = documents([5, 9, 20, 31, 2, 17, 30, 8] * 4)

  def order(seed):
    rng = None if seed is None else np.random.default_rng(seed)
    return [int(row[0].tokens[0]) for row in packing.packed_rows(examples, (0, CAPACITY), rng)]

  assert order(1) == order(1) != order(2)
  assert order(None) == sorted(order(None))


@given(LENGTHS.filter(lambda lengths: len(lengths) % 4 == 0), st.booleans())
def test_rows_by_length_are_all_there_in_batches_of_like_length(lengths, shuffled):
  examples = documents(lengths)
  rng = np.random.default_rng(0) if shuffled else None
  rows = packing.rows_by_length(examples, 4, rng)
  assert sorted(int(row[0].tokens[0]) for row in rows) == [int(e.tokens[0]) for e in examples]
  sizes = [[len(row[0]) for row in rows[i : i + 4]] for i in range(0, len(rows), 4)]
  assert sorted(sizes, reverse=True) == [
    sorted(lengths, reverse=True)[i : i + 4] for i in range(0, len(lengths), 4)
  ]


def test_bucket():
  assert [packing.bucket(n, (8, 16)) for n in (1, 8, 9, 16)] == [8, 8, 16, 16]
  with pytest.raises(ValueError, match="17 tokens fits none of the buckets"):
    packing.bucket(17, (8, 16))
