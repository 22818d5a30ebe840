"""Filters against transformers' logits processors; draws against the distribution itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
  MinPLogitsWarper,
  RepetitionPenaltyLogitsProcessor,
  TemperatureLogitsWarper,
  TopKLogitsWarper,
  TopPLogitsWarper,
  TypicalLogitsWarper,
)

from research.core import config as config_lib
from research.generation import Sampler
from research.generation.samplers import SAMPLERS, Seen, most_probable

VOCABULARY = 700  # not a multiple of the samplers' blocks


def _logits(seed, rows=6, spread=3.0):
  rng = np.random.default_rng(seed)
  return (rng.standard_normal((rows, VOCABULARY)) * spread).astype(np.float32)


# Always the same examples: where a sum meets its target within rounding, either tool is right.
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
  seed=st.integers(0, 10_000),
  temperature=st.sampled_from([0.3, 0.7, 1.0, 1.9]),
  top_k=st.sampled_from([0, 1, 2, 50, VOCABULARY - 1, VOCABULARY, VOCABULARY + 5]),
  top_p=st.sampled_from([0.001, 0.3, 0.9, 0.99, 1.0]),
  min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
  typical_p=st.sampled_from([1.0, 0.01, 0.5, 0.95]),
)
def test_filters_are_those_of_transformers(seed, temperature, top_k, top_p, min_p, typical_p):
  logits = _logits(seed)
  theirs = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
  if top_k:
    theirs = TopKLogitsWarper(top_k)(None, theirs)
  if top_p < 1:
    theirs = TopPLogitsWarper(top_p)(None, theirs)
  if min_p:
    theirs = MinPLogitsWarper(min_p)(None, theirs)
  if typical_p < 1:
    theirs = TypicalLogitsWarper(typical_p)(None, theirs)
  sampler = Sampler(temperature, top_k, top_p, min_p, typical_p)
  ours = np.asarray(sampler.filter(jnp.asarray(logits)))
  np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs.numpy()))
  np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


def test_tokens_that_tie_with_the_last_kept_are_kept():
  logits = jnp.asarray([[0.0, 2.0, 2.0, 3.0, -1.0, 2.0]])
  kept = np.isfinite(Sampler(1.0, top_k=2).filter(logits))
  theirs = TopKLogitsWarper(2)(None, torch.tensor(np.asarray(logits)))
  np.testing.assert_array_equal(kept, np.isfinite(theirs.numpy()))
  assert kept.sum() == 4


def test_filtering_a_filtered_distribution_keeps_what_is_left():
  logits = jnp.where(jnp.arange(VOCABULARY) < 5, jnp.asarray(_logits(0)), -jnp.inf)
  kept = np.isfinite(Sampler(1.0, top_k=10, top_p=0.9999999).filter(logits))
  assert kept[:, :5].all()
  assert not kept[:, 5:].any()


@pytest.mark.parametrize(("min_p", "typical_p"), [(0.05, 1.0), (0.0, 0.3), (0.0, 0.9)])
def test_min_p_and_typical_alone_are_those_of_transformers(min_p, typical_p):
  logits = _logits(11, rows=16)
  theirs = torch.tensor(logits)
  theirs = MinPLogitsWarper(min_p)(None, theirs) if min_p else theirs
  theirs = TypicalLogitsWarper(typical_p)(None, theirs) if typical_p < 1 else theirs
  ours = np.asarray(Sampler(1.0, min_p=min_p, typical_p=typical_p).filter(jnp.asarray(logits)))
  np.testing.assert_array_equal(ours, theirs.numpy())
  assert 16 < np.isfinite(ours).sum() < ours.size


def _seen(prompt, written, padding=0):
  """Of one row, whose prompt has `padding` tokens of id 0 on its left."""
  tokens = jnp.asarray([[0] * padding + prompt], jnp.int32)
  positions = jnp.asarray([[-1] * padding + list(range(len(prompt)))])
  seen = Seen.of_prompt(tokens, positions, VOCABULARY)
  for token in written:
    seen = seen.add(jnp.asarray([token]))
  return seen


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_is_that_of_transformers(penalty):
  logits = _logits(5, rows=1)
  prompt, written = list(range(40, 80)), [3, 3, 699, 50]
  ids = torch.tensor([prompt + written])
  theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, torch.tensor(logits)).numpy()
  sampler = Sampler(repetition_penalty=penalty)
  ours = sampler.penalize(jnp.asarray(logits), _seen(prompt, written, padding=24))
  np.testing.assert_allclose(ours, theirs, rtol=1e-6)
  assert (theirs != logits).sum() == 42


def test_frequency_and_presence_penalties_count_what_was_written():
  """OpenAI: `logit - count * frequency_penalty - [count > 0] * presence_penalty`."""
  logits = _logits(6, rows=1)
  sampler = Sampler(frequency_penalty=0.5, presence_penalty=-0.25)
  expected = logits.copy()
  expected[0, 7] += -3 * 0.5 + 0.25
  expected[0, 600] += -0.5 + 0.25
  ours = sampler.penalize(jnp.asarray(logits), _seen([7, 8], [7, 600, 7, 7]))
  np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_sections_of_a_config_name_samplers():
  section = {"name": "sample", "min_p": 0.1, "presence_penalty": 0.5}
  expected = Sampler(1.0, min_p=0.1, presence_penalty=0.5)
  assert config_lib.call(SAMPLERS, section) == expected
  section = {"name": "greedy", "repetition_penalty": 1.2}
  assert config_lib.call(SAMPLERS, section) == Sampler(repetition_penalty=1.2)
  with pytest.raises(config_lib.ConfigError, match="greedy takes no 'top_k'"):
    config_lib.call(SAMPLERS, {"name": "greedy", "top_k": 3})


@pytest.mark.parametrize(
  "sampler",
  [
    Sampler(1.0),
    Sampler(0.7, top_k=40),
    Sampler(1.3, 0, 0.8),
    Sampler(1.0, typical_p=0.6),
    Sampler(1.0, min_p=0.02),
  ],
)
def test_draws_follow_the_filtered_distribution(sampler):
  """Counts of 20,000 draws, each within 5 standard deviations of the softmax's."""
  draws = 20_000
  logits = jnp.asarray(_logits(1, rows=1))
  keys = jax.random.split(jax.random.key(0), draws)
  rows = jnp.broadcast_to(logits, (draws, VOCABULARY))
  counts = np.bincount(np.asarray(sampler(rows, keys)), minlength=VOCABULARY)
  expected = np.asarray(jax.nn.softmax(sampler.filter(logits)[0].astype(jnp.float32)))
  assert counts[expected == 0].sum() == 0
  deviation = np.sqrt(draws * expected * (1 - expected)) + 1  # counts of rare tokens are whole
  np.testing.assert_array_less(np.abs(counts - draws * expected), 5 * deviation)
  common = expected > 2e-4
  chi_square = np.sum(((counts - draws * expected) ** 2 / (draws * expected + 1e-9))[common])
  freedom = common.sum()
  assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_a_row_depends_on_its_own_key_only():
  logits = jnp.asarray(_logits(2))
  keys = jax.random.split(jax.random.key(3), len(logits))
  together = Sampler(1.0)(logits, keys)
  alone = jnp.concatenate([Sampler(1.0)(logits[i : i + 1], keys[i : i + 1]) for i in range(6)])
  np.testing.assert_array_equal(together, alone)
  backwards = Sampler(1.0)(logits[::-1], keys[::-1])
  np.testing.assert_array_equal(together, backwards[::-1])


def test_temperature_0_and_top_k_1_take_the_most_probable_token():
  logits = jnp.asarray(_logits(4))
  keys = jax.random.split(jax.random.key(0), len(logits))
  best = np.argmax(logits, axis=-1)
  np.testing.assert_array_equal(Sampler()(logits, keys), best)
  np.testing.assert_array_equal(Sampler(5.0, top_k=1)(logits, keys), best)
  np.testing.assert_array_equal(Sampler(5.0, top_p=1e-6)(logits, keys), best)


def test_of_several_maxima_the_first_is_taken():
  logits = np.zeros((3, VOCABULARY), np.float32)
  logits[0, [300, 301, 650]] = 1
  logits[1, [255, 256]] = 1
  np.testing.assert_array_equal(most_probable(jnp.asarray(logits)), [300, 255, 0])


@pytest.mark.parametrize(
  ("arguments", "told"),
  [
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"top_k": -1}, "top_k is -1"),
    ({"top_p": 0.0}, "top_p is 0.0"),
    ({"top_p": 1.1}, "top_p is 1.1"),
    ({"min_p": 1.5}, "min_p is 1.5"),
    ({"typical_p": 0.0}, "typical_p is 0.0"),
    ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
    ({"presence_penalty": float("inf")}, "presence_penalty is inf"),
  ],
)
def test_values_that_mean_nothing(arguments, told):
  with pytest.raises(ValueError, match=told):
    Sampler(**arguments)
