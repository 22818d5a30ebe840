"""Speculative decoding against plain generation, and against exact probabilities."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models
from research.generation import Draft, Sampler, StopStrings, drop_layers, generate, speculate

PROMPTS = [[5, 17, 8], [9] * 30, list(range(20, 31)), [7]]
NEW = 20
# One sampler and one shape for all tests: what takes time is to compile.
SAMPLER = Sampler(repetition_penalty=1.2, frequency_penalty=0.5)


def _model(vocabulary, factor):
  """Two layers, and a draft of the first alone."""
  model = models.build(
    {"model_type": "llama", "vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 16,
     "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
  )  # fmt: skip
  params = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"]
  return model, {"params": jax.tree.map(lambda x: x * factor if x.ndim > 1 else x, params)}


@pytest.fixture(scope="module")
def small():
  return _model(300, 9)


@pytest.fixture(scope="module")
def plain(small):
  """What `generate` writes, without an end."""
  return generate(*small, PROMPTS, SAMPLER, max_new_tokens=NEW, eos_ids=())


def _speculate(small, eos, **changes):
  return speculate(
    *small,
    PROMPTS,
    SAMPLER,
    draft=drop_layers(*small, [0]),
    draft_tokens=3,
    max_new_tokens=NEW,
    eos_ids=(eos,),
    **changes,
  )


def test_the_most_probable_tokens_are_those_of_generate(small, plain, byte_tokenizer):
  """With penalties, an EOS token, and then with a stop string too."""
  eos = plain[0].tokens[7]
  found = _speculate(small, eos)
  assert [c.prompt for c in found.completions] == [0, 1, 2, 3]
  written = 0
  for ours, whole in zip(found.completions, plain, strict=True):
    length = whole.tokens.index(eos) + 1 if eos in whole.tokens else NEW
    assert ours.tokens == whole.tokens[:length] and ours.finished == (eos in whole.tokens)
    np.testing.assert_allclose(ours.log_probs, whole.log_probs[:length], atol=1e-4)
    written += length - 1  # the first one is not drafted
  assert 0.02 < found.acceptance < 0.98  # rows keep different numbers
  assert found.written == written > found.passes
  assert found.accepted <= found.examined
  assert found.written - found.passes <= found.accepted < found.written

  text = byte_tokenizer.decode(plain[1].tokens)
  stop = StopStrings(byte_tokenizer, (next(c for c in text[1:] if c.isascii()),))
  stopped = _speculate(small, eos, stop=stop).completions
  assert stopped[1].finished and len(stopped[1].tokens) < len(found.completions[1].tokens)
  for ours, whole in zip(stopped, found.completions, strict=True):
    reader, length = stop.reader(), 0
    while length < len(whole.tokens) and not reader.stopped:
      reader.push(whole.tokens[length])
      length += 1
    assert ours.tokens == whole.tokens[:length]


def test_drafted_tokens_behind_the_end_do_not_count(small, plain):
  """A model that drafts for itself is always right: each pass gives 6 tokens, or the last ones.

  The first row ends with EOS within a pass, the others at the limit.
  """
  eos, limit = plain[0].tokens[3], 15
  found = speculate(
    *small,
    PROMPTS,
    SAMPLER,
    draft=drop_layers(*small, [0, 1]),
    draft_tokens=5,
    max_new_tokens=limit,
    eos_ids=(eos,),
  )
  lengths = [(c.tokens[:limit].index(eos) + 1 if eos in c.tokens[:limit] else limit) for c in plain]
  assert lengths[0] == 4 and limit in lengths
  assert [len(c.tokens) for c in found.completions] == lengths
  assert found.written == sum(lengths) - len(PROMPTS)  # the first one is not drafted
  assert found.passes == sum(math.ceil((length - 1) / 6) for length in lengths)
  assert found.acceptance == 1 and found.tokens_per_pass == found.written / found.passes
  # In every pass but the sixth token, which the model adds to five that stay.
  assert found.accepted == sum(length - 1 - (length - 1) // 6 for length in lengths)


def test_the_distribution_is_the_models_own():
  """Triples of tokens against their exact probabilities, through temperature and top-p.

  Pearson's statistic is within five standard deviations of its mean: right draws fail under about
  one seed in 10^5. The draft's own distribution is far outside.
  """
  model, variables = _model(5, 12)
  draft = drop_layers(model, variables, [0])
  sampler = Sampler(1.3, top_p=0.9)
  arguments = {"max_new_tokens": 3, "eos_ids": (), "samples": 4096, "batch_size": 4096}
  found = speculate(model, variables, [[2, 4]], sampler, draft=draft, draft_tokens=2, **arguments)
  triples = np.array(list(itertools.product(range(5), repeat=3)))  # [125, 3]
  rows = jnp.asarray(np.concatenate([np.tile([2, 4], (125, 1)), triples], axis=1))

  @partial(jax.jit, static_argnums=0)
  def probabilities(model, variables):
    logits = model.apply(variables, rows)[:, 1:4]  # before each of the three
    return jax.nn.softmax(sampler.filter(logits.reshape(-1, 5))).reshape(125, 3, 5)

  def exact(model, variables):
    probs = probabilities(model, variables)
    return np.prod(np.take_along_axis(np.asarray(probs), triples[..., None], axis=2)[..., 0], 1)

  drawn = np.array([c.tokens for c in found.completions]) @ [25, 5, 1]
  counts = np.bincount(drawn, minlength=125)

  def deviations(exactly):
    expected = 4096 * exactly
    usual = expected > 5
    assert counts[expected == 0].sum() == 0
    freedom = usual.sum()
    statistic = ((counts - expected)[usual] ** 2 / expected[usual]).sum()
    return (statistic - freedom) / np.sqrt(2 * freedom)

  assert abs(exact(model, variables).sum() - 1) < 1e-5
  assert 0.2 < found.acceptance < 0.9
  assert deviations(exact(model, variables)) < 5
  others = exact(*draft)
  assert np.abs(others - exact(model, variables)).sum() > 0.2


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"draft_tokens": 0}, "draft_tokens is 0"),
    ({"vocab_size": 299}, "the draft has 299 tokens and the model 300"),
    ({"max_position_embeddings": 8}, "prompt 0, for the draft, .* exceeds the model's 8 positions"),
  ],
)
def test_what_cannot_be_speculated(small, changes, told):
  other = models.build(
    {"model_type": "llama", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 16,
     "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 99,
     **{k: v for k, v in changes.items() if k != "draft_tokens"}}
  )  # fmt: skip
  count = changes.get("draft_tokens", 2)
  with pytest.raises(ValueError, match=told):
    speculate(
      *small, [[1]], draft=Draft(other, {}), draft_tokens=count, max_new_tokens=8, eos_ids=()
    )


def test_layers_that_are_not_there(small):
  with pytest.raises(ValueError, match="the model has 0 to 1"):
    drop_layers(*small, [0, 3])
