"""What is kept of a teacher: by example, over files, and after an interruption."""

import numpy as np
import pytest

from research.data import kept, packing
from research.data.examples import Example

COUNT = 3


def _example(seed, length, learnt):
  rng = np.random.default_rng(seed)
  mask = np.zeros(length, bool)
  mask[learnt:] = True
  return Example(rng.integers(0, 50, length).astype(np.int32), mask)


def _told(example):
  """What the teacher says: a function of the example."""
  ids = example.tokens[:, None] * 10 + np.arange(COUNT)
  return ids, -(ids / 16).astype(np.float16)


# Two parts; the third row of the first was dropped, and the second part's first was split.
PARTS = [
  [(_example(0, 5, 2),), (_example(1, 4, 0),), (), (_example(2, 6, 5),)],
  [(_example(3, 7, 1), _example(4, 3, 0)), (_example(5, 2, 1),)],
]


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
  monkeypatch.setattr(kept, "FILE_ROWS", 2)


def test_each_example_gets_what_was_said_of_what_it_learns(tmp_path):
  kept.write(tmp_path / "kept", PARTS, COUNT, lambda examples: [_told(e) for e in examples])
  found = kept.Kept(tmp_path / "kept")
  assert found.count == COUNT
  for part, rows in enumerate(PARTS):
    for index, examples in enumerate(rows):
      got = found.of(part, index, examples)
      assert len(got) == len(examples)
      for ours, example in zip(got, examples, strict=True):
        np.testing.assert_array_equal(ours.tokens, example.tokens)
        learnt = np.append(example.weights_mask[1:], False)[:, None]
        for array, said in zip(ours.kept, _told(example), strict=True):
          np.testing.assert_array_equal(array, np.where(learnt, said, 0))


def test_writing_goes_on_after_the_last_whole_file(tmp_path):
  asked = []

  def ask(examples, fails_after=None):
    if fails_after is not None and len(asked) >= fails_after:
      raise KeyboardInterrupt
    asked.append(len(examples))
    return [_told(example) for example in examples]

  directory = tmp_path / "kept"
  with pytest.raises(KeyboardInterrupt):
    kept.write(directory, PARTS, COUNT, lambda examples: ask(examples, 2))
  assert asked == [2, 1] and not kept.is_whole(directory)
  kept.write(directory, PARTS, COUNT, ask)
  assert asked == [2, 1, 3] and kept.is_whole(directory)
  got = kept.Kept(directory).of(1, 1, PARTS[1][1])[0]
  np.testing.assert_array_equal(got.kept[0][0], _told(got)[0][0])


def test_a_batch_has_it_beside_its_tokens(tmp_path):
  kept.write(tmp_path, PARTS, COUNT, lambda examples: [_told(e) for e in examples])
  first, second = (kept.Kept(tmp_path).of(0, i, PARTS[0][i])[0] for i in (0, 1))
  batch = packing.assemble([[first, second], []], 12, 0, kept=COUNT)
  assert batch["teacher_ids"].shape == batch["teacher_log_probs"].shape == (2, 12, COUNT)
  assert batch["teacher_log_probs"].dtype == np.float16
  np.testing.assert_array_equal(batch["teacher_ids"][0, 5:9], second.kept[0])
  assert not batch["teacher_ids"][batch["weights"] == 0].any()
  assert (batch["teacher_log_probs"][batch["weights"] > 0] < 0).any()
