"""Speculative decoding against plain generation, and against exact probabilities."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models
from research.generation import Draft, Sampler, StopStrings, drop_layers, generate, speculate

PROMPTS = [[5, 17, 8], [9] * 30, list(range(20, 31)), [7], [250, 3, 3, 90, 41]]
NEW = 20


@pytest.fixture(scope="module")
def draft(toy):
  """Right now and then: the model with the last layer's work taken down to a third."""
  model, variables = toy
  layers = variables["params"]["layers"]
  weaker = {
    **layers,
    "mlp": jax.tree.map(lambda x: x.at[-1].multiply(0.3), layers["mlp"]),
  }
  return Draft(model, {"params": {**variables["params"], "layers": weaker}})


@pytest.mark.parametrize(
  "sampler", [Sampler(), Sampler(repetition_penalty=1.5, frequency_penalty=2.0)]
)
def test_the_most_probable_tokens_are_those_of_generate(toy, draft, sampler):
  plain = generate(*toy, PROMPTS, sampler, max_new_tokens=NEW, eos_ids=(), samples=2)
  eos = (plain[0].tokens[7], plain[4].tokens[11])
  arguments = {"max_new_tokens": NEW, "eos_ids": eos, "samples": 2, "batch_size": 4}
  expected = generate(*toy, PROMPTS, sampler, **arguments)
  found = speculate(*toy, PROMPTS, sampler, draft=draft, draft_tokens=3, **arguments)
  assert [(c.prompt, c.sample) for c in found.completions] == [
    (c.prompt, c.sample) for c in expected
  ]
  for ours, theirs in zip(found.completions, expected, strict=True):
    assert ours.tokens == theirs.tokens and ours.finished == theirs.finished
    np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=2e-5)
  assert 0.05 < found.acceptance < 0.95  # rows keep different numbers
  written = sum(len(c.tokens) - 1 for c in expected)  # the first one is not drafted
  assert found.accepted + found.passes >= written


def test_a_draft_that_is_the_model_always_stays(toy, byte_tokenizer):
  model, variables = toy
  whole = drop_layers(model, variables, range(3))
  plain = generate(*toy, PROMPTS, max_new_tokens=NEW, eos_ids=())
  text = byte_tokenizer.decode(plain[1].tokens)
  stop = StopStrings(byte_tokenizer, (next(c for c in text[2:] if c.isascii()),))
  arguments = {"max_new_tokens": NEW, "eos_ids": (), "stop": stop}
  found = speculate(*toy, PROMPTS, draft=whole, draft_tokens=3, **arguments)
  assert found.completions[1].finished
  assert [c.tokens for c in found.completions] == [
    c.tokens for c in generate(*toy, PROMPTS, **arguments)
  ]
  assert found.acceptance == 1 and found.tokens_per_pass == 4


def test_the_distribution_is_the_models_own():
  """Triples of tokens against their exact probabilities, through temperature and top-p.

  Pearson's statistic is within five standard deviations of its mean: right draws fail under about
  one seed in 10^5. The draft's own distribution is far outside.
  """
  config = {
    "model_type": "llama", "vocab_size": 5, "hidden_size": 16, "intermediate_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16,
  }  # fmt: skip
  model = models.build(config)
  params = model.init(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"]
  variables = {"params": jax.tree.map(lambda x: x * 12 if x.ndim > 1 else x, params)}
  draft = drop_layers(model, variables, [0])
  sampler = Sampler(1.3, top_p=0.9)
  arguments = {"max_new_tokens": 3, "eos_ids": (), "samples": 8192, "batch_size": 8192}
  found = speculate(model, variables, [[2, 4]], sampler, draft=draft, draft_tokens=2, **arguments)
  triples = np.array(list(itertools.product(range(5), repeat=3)))  # [125, 3]
  rows = jnp.asarray(np.concatenate([np.tile([2, 4], (125, 1)), triples], axis=1))

  def exact(model, variables):
    logits = model.apply(variables, rows)[:, 1:4]  # before each of the three
    probs = jax.nn.softmax(sampler.filter(logits.reshape(-1, 5))).reshape(125, 3, 5)
    return np.prod(np.take_along_axis(np.asarray(probs), triples[..., None], axis=2)[..., 0], 1)

  drawn = np.array([c.tokens for c in found.completions]) @ [25, 5, 1]
  counts = np.bincount(drawn, minlength=125)

  def deviations(probabilities):
    expected = 8192 * probabilities
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
def test_what_cannot_be_speculated(toy, changes, told):
  other = models.build(
    {"model_type": "llama", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 16,
     "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 99,
     **{k: v for k, v in changes.items() if k != "draft_tokens"}}
  )  # fmt: skip
  count = changes.get("draft_tokens", 2)
  with pytest.raises(ValueError, match=told):
    speculate(*toy, [[1]], draft=Draft(other, {}), draft_tokens=count, max_new_tokens=8, eos_ids=())


def test_layers_that_are_not_there(toy):
  with pytest.raises(ValueError, match="the model has 0 to 2"):
    drop_layers(*toy, [0, 3])
