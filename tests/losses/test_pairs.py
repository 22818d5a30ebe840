"""How pairs come of a batch's tokens, against plain sums row by row."""

import jax.numpy as jnp
import numpy as np
import pytest

from research.losses import pairs as pairing

RNG = np.random.default_rng(0)
LOG_PROBS = -RNG.exponential(size=(4, 6)).astype(np.float32)
COUNTED = np.array(
  [[0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]], np.float32
)


def test_sums_over_completions():
  got = pairing.completion_log_probs(LOG_PROBS, COUNTED)
  np.testing.assert_allclose(got, (LOG_PROBS * COUNTED).sum(1), rtol=1e-6)
  np.testing.assert_array_equal(got, pairing.completion_log_probs(LOG_PROBS, COUNTED, ld_alpha=1.0))


@pytest.mark.parametrize("ld_alpha", [0.0, 0.4])
def test_length_desensitized(ld_alpha):
  got = pairing.completion_log_probs(LOG_PROBS, COUNTED, ld_alpha=ld_alpha)
  for row in range(4):
    own, other = (LOG_PROBS[r][COUNTED[r] > 0] for r in (row, (row + 2) % 4))
    shared = min(len(own), len(other))
    np.testing.assert_allclose(
      got[row], own[:shared].sum() + ld_alpha * own[shared:].sum(), rtol=1e-6
    )


def test_gather():
  reference = np.arange(4, dtype=np.float32)
  pairs = pairing.gather(LOG_PROBS, COUNTED, reference, ld_alpha=0.0)
  np.testing.assert_array_equal(pairs.chosen_tokens, [4, 2])
  np.testing.assert_array_equal(pairs.rejected_tokens, [2, 5])
  np.testing.assert_array_equal(pairs.reference_rejected, [2, 3])
  np.testing.assert_array_equal(pairs.weights, [1, 1])
  # What is imitated is not desensitized, and may have the prompt.
  np.testing.assert_allclose(pairs.imitated, (LOG_PROBS * COUNTED).sum(1)[:2], rtol=1e-6)
  prompts = pairing.gather(LOG_PROBS, COUNTED, imitated=jnp.ones((2, 6)))
  np.testing.assert_allclose(prompts.imitated, LOG_PROBS[:2].sum(1), rtol=1e-6)
  np.testing.assert_array_equal(prompts.imitated_tokens, [6, 6])
  assert prompts.reference_chosen is None


def test_rows_without_a_pair_weigh_nothing():
  empty = COUNTED * np.array([[1], [0], [1], [0]])
  np.testing.assert_array_equal(pairing.gather(LOG_PROBS, empty).weights, [1, 0])


def test_mistakes():
  with pytest.raises(ValueError, match="3 rows are no pairs"):
    pairing.gather(LOG_PROBS[:3], COUNTED[:3])
  with pytest.raises(ValueError, match="ld_alpha .* not 2"):
    pairing.completion_log_probs(LOG_PROBS, COUNTED, ld_alpha=2)
