"""A queue of requests against the same prompts in batches that start together."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from research import models
from research.generation import Request, Sampler, StopStrings, generate, serve

PROMPTS = [[5, 17, 8], [9] * 30, list(range(20, 31)), [7], [250, 3, 3, 90, 41], [8] * 27, [1, 2]]
LIMITS = [3, 20, 1, 9, 14, 6, 20]
REQUESTS = [Request(*pair) for pair in zip(PROMPTS, LIMITS, strict=True)]
# One shape and one sampler for all tests: what takes time is to compile.
SAMPLER = Sampler(1.5, top_k=30, frequency_penalty=1.0)
SAME = {"seed": 3, "first_prompt": 4}
ROWS = {"slots": 52, "batch_size": 3}


@pytest.fixture(scope="module")
def plain(toy):
  """What `generate` writes, without an end."""
  return generate(*toy, PROMPTS, SAMPLER, max_new_tokens=20, eos_ids=(), **SAME)


def _same(found, expected, limits=LIMITS):
  """Whether `found`, in any order, is `expected`, each cut at its limit."""
  assert sorted(c.prompt for c in found) == list(range(len(expected)))
  for completion in found:
    whole, limit = expected[completion.prompt], limits[completion.prompt]
    assert completion.tokens == whole.tokens[:limit]
    np.testing.assert_allclose(completion.log_probs, whole.log_probs[:limit], atol=1e-5)
    assert completion.finished == (whole.finished and len(whole.tokens) <= limit)


def test_completions_are_those_of_generate(toy, plain):
  """Also after the ring has gone round: 73 tokens and more pass through its 64 slots."""
  found = list(serve(*toy, REQUESTS, SAMPLER, eos_ids=(), **ROWS, **SAME))
  _same(found, plain)
  assert [c.prompt for c in found] != sorted(c.prompt for c in found)  # as they finish


def test_windows_and_a_long_queue():
  """A model whose layers differ, rows that are refilled many times, and an EOS token."""
  config = {
    "model_type": "gemma2", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "sliding_window": 6, "query_pre_attn_scalar": 8,
  }  # fmt: skip
  model = models.build(config)
  params = model.init(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
  variables = {"params": jax.tree.map(lambda x: x * 5 if x.ndim > 1 else x, params)}
  draw = np.random.default_rng(0)
  prompts = [draw.integers(0, 97, draw.integers(1, 20)).tolist() for _ in range(24)]
  limits = draw.integers(1, 16, 24).tolist()
  requests = [Request(*pair) for pair in zip(prompts, limits, strict=True)]
  whole = generate(model, variables, prompts, max_new_tokens=15, eos_ids=())
  eos = whole[3].tokens[2]  # any token that is drawn sometimes
  expected = []
  for c in whole:
    length = c.tokens.index(eos) + 1 if eos in c.tokens else 15
    expected.append(
      dataclasses.replace(
        c, tokens=c.tokens[:length], log_probs=c.log_probs[:length], finished=eos in c.tokens
      )
    )
  found = serve(model, variables, requests, eos_ids=(eos,), batch_size=3, unrolled=False)
  _same(list(found), expected, limits)


def test_stop_strings(toy, plain, byte_tokenizer):
  text = byte_tokenizer.decode(plain[1].tokens)
  stop = StopStrings(byte_tokenizer, (next(c for c in text[2:] if c.isascii()),))
  expected = generate(*toy, PROMPTS, SAMPLER, max_new_tokens=20, eos_ids=(), stop=stop, **SAME)
  assert any(c.finished for c in expected)
  _same(list(serve(*toy, REQUESTS, SAMPLER, eos_ids=(), stop=stop, **ROWS, **SAME)), expected)


def test_requests_are_taken_as_rows_become_free(toy):
  """From a queue without an end."""
  taken = []

  def endless():
    for i in itertools.count():
      taken.append(i)
      yield Request([i % 300], 1 + i % 3)

  found = list(itertools.islice(serve(*toy, endless(), SAMPLER, eos_ids=(), **ROWS), 10))
  assert len({c.prompt for c in found}) == 10 and len(taken) <= 15
  assert all(len(c.tokens) == 1 + c.prompt % 3 for c in found)


def test_no_requests(toy):
  assert list(serve(*toy, [], SAMPLER, eos_ids=(), **ROWS)) == []


@pytest.mark.parametrize(
  ("request_", "slots", "told"),
  [
    (Request([], 2), None, "prompt 0 is empty"),
    (Request([1], 0), None, "max_new_tokens is 0"),
    (
      Request([1] * 50, 4),
      52,
      "50 tokens, which with max_new_tokens 4 exceeds the 52 slots of a row",
    ),
  ],
)
def test_what_cannot_be_served(toy, request_, slots, told):
  with pytest.raises(ValueError, match=told):
    list(serve(*toy, [request_], SAMPLER, eos_ids=(), slots=slots or 52, batch_size=3))
