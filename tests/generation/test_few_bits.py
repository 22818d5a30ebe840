"""Generation over a cache in few bits."""

import dataclasses

import jax
import numpy as np
import pytest

from research import models
from research.evals import few_bits
from research.generation import generate
from research.models import Cache
from research.quant import CacheScheme

NONE_IN_FEW = CacheScheme("int2", group=4, recent=200)
PROMPTS = [list(range(1, 45)), [7, 8, 9], list(range(60, 90))]
SAME = {"max_new_tokens": 24, "eos_ids": ()}


@pytest.fixture(scope="module")
def expected(toy):
  return generate(*toy, PROMPTS, **SAME)


def apart(found, expected):
  """The mean distance of the log-probabilities of first tokens that both wrote."""
  gaps = []
  for ours, theirs in zip(found, expected, strict=True):
    same = np.cumprod(np.array(ours.tokens) == np.array(theirs.tokens)).astype(bool)
    gaps += list(np.abs(np.array(ours.log_probs) - np.array(theirs.log_probs))[same])
  return np.mean(gaps), len(gaps)


@pytest.mark.parametrize("unrolled", [True, False])
def test_a_window_of_all_tokens_changes_nothing(toy, expected, unrolled):
  found = generate(*toy, PROMPTS, **SAME, unrolled=unrolled, cache=NONE_IN_FEW)
  assert [c.tokens for c in found] == [c.tokens for c in expected]
  gap, count = apart(found, expected)
  assert count == 72 and gap < 1e-4


def test_fewer_bits_are_further_off(toy, expected):
  gaps = []
  for kind in ("int8", "int4", "int2"):
    found = generate(*toy, PROMPTS, **SAME, cache=CacheScheme(kind, group=4, recent=4))
    gap, count = apart(found, expected)
    assert count >= 3
    gaps.append(gap)
  assert 0 < gaps[0] < 0.02 and gaps[0] < gaps[1] < gaps[2]


def test_samples_share_a_prompt(toy):
  """Rows are copied with their codes."""
  scheme = CacheScheme("int4", group=4, recent=4)
  found = generate(*toy, PROMPTS[:1], **SAME, samples=3, cache=scheme)
  alone = generate(*toy, PROMPTS[:1], **SAME, cache=scheme)
  assert [c.tokens for c in found] == [alone[0].tokens] * 3


def test_rows_of_stacks_and_of_layers_are_taken(toy):
  """Leaf by leaf, whatever holds them."""
  model, _ = toy
  cache: Cache = model.init_cache(2, 8)
  scheme = CacheScheme("int8", group=4, recent=0)
  ones = jax.tree.map(lambda x: x.at[:, 1].set(1), cache.layers)
  few = cache.replace(layers=ones, positions=cache.positions + 1).compress(scheme, 2, 8)
  taken = few.take(np.array([3, 2, 1, 0]))
  keys, _ = jax.vmap(lambda layer: layer.read(7))(taken.layers)
  assert keys.shape[:2] == (3, 4)
  np.testing.assert_array_equal(keys[:, :, 0, 0, 0], [[1, 1, 0, 0]] * 3)


def test_an_encoder_decoder_is_told(toy):
  shape = {
    "model_type": "t5",
    "vocab_size": 40,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 8,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
  }
  with pytest.raises(ValueError, match="a cache in few bits is for decoders"):
    generate(models.build(shape), {}, [[1]], **SAME, cache=NONE_IN_FEW)


def test_whole_rows_see_what_a_cache_would_hold(toy):
  """The log-probabilities of a row read at once are those of writing it token by token.

  The prompt fills its bucket and the window, within which nothing is rounded.
  """
  model, variables = toy
  scheme, prompt = CacheScheme("int2", group=4, recent=28), PROMPTS[0][:32]
  (written,) = generate(model, variables, [prompt], **SAME, cache=scheme)
  row = np.array([prompt + written.tokens])
  found = {}
  for name, seen in (
    ("few", few_bits.remembering(scheme, variables, model.config)),
    ("all", variables),
  ):
    log_probs = jax.nn.log_softmax(model.apply(seen, row[:, :-1])[0, 31:])
    found[name] = np.take_along_axis(log_probs, row[0, 32:, None], axis=-1)[:, 0]
  np.testing.assert_allclose(found["few"], written.log_probs, atol=2e-4)
  assert np.abs(found["all"] - found["few"]).max() > 1e-2


def test_what_is_in_the_way_of_a_measure_is_told(toy):
  model, variables = toy
  scheme = CacheScheme("int4")
  told = few_bits.remembering(scheme, variables, model.config)
  with pytest.raises(ValueError, match="without a prefix"):
    few_bits.remembering(scheme, told, model.config)
  biased = dataclasses.replace(model.config, rope=None, positions="alibi")
  with pytest.raises(ValueError, match="without a bias of scores"):
    few_bits.remembering(scheme, variables, biased)
