"""Every sample of every prompt is in some batch, once, whole and where it should be."""

from hypothesis import given, settings
from hypothesis import strategies as st

from research.generation import layout


@settings(max_examples=60, deadline=None)
@given(
  prompts=st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=80), max_size=12),
  samples=st.integers(1, 7),
  batch_size=st.integers(1, 9),
)
def test_batches_cover_all_samples_once(prompts, samples, batch_size):
  seen = []
  for batch in layout.batches(prompts, samples=samples, batch_size=batch_size, pad_id=0):
    rows, length = batch.tokens.shape
    assert rows * batch.samples <= batch_size
    for row in range(rows):
      prompt = batch.prompt[row]
      real = batch.positions[row] >= 0
      if prompt < 0:
        assert not real.any()
        continue
      size = len(prompts[prompt])
      assert batch.tokens[row, length - size :].tolist() == prompts[prompt]
      assert batch.positions[row, length - size :].tolist() == list(range(size))
      assert real.sum() == size
      seen += [(prompt, batch.first_sample[row] + j) for j in range(batch.samples)]
  wanted = [(i, j) for i in range(len(prompts)) for j in range(samples)]
  assert sorted(pair for pair in seen if pair[1] < samples) == wanted
  assert len(set(seen)) == len(seen)


@given(st.integers(1, 5000))
def test_buckets_are_powers_of_two_at_most_twice_too_large(length):
  size = layout.bucket(length, shortest=1)
  assert length <= size < 2 * length
  assert size & (size - 1) == 0
  assert layout.bucket(length) == max(size, layout.SHORTEST)
  assert 0 <= layout.slots(length) - length < 16
