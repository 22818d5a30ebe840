"""A queue of requests against the same prompts in batches that start together."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models
from research.generation import Request, Sampler, StopStrings, generate, serve
from research.models import Cache
from research.nn.incremental import Slots

# One shape and one sampler for all tests: what takes time is to compile.
SAMPLER = Sampler(1.5, top_k=30, frequency_penalty=1.0)
SAME = {"seed": 3, "first_prompt": 4}
ROWS = {"slots": 52, "batch_size": 3}
NEW = 20


@pytest.fixture(scope="module")
def small():
  """A layer whose window is shorter than the prompts."""
  config = {
    "model_type": "mistral", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 64, "sliding_window": 6,
  }  # fmt: skip
  model = models.build(config)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  return model, {"params": jax.tree.map(lambda x: x * 9 if x.ndim > 1 else x, params)}


@pytest.fixture(scope="module")
def prompts():
  draw = np.random.default_rng(0)
  return [draw.integers(0, 300, draw.integers(1, 32)).tolist() for _ in range(14)]


@pytest.fixture(scope="module")
def requests(prompts):
  limits = np.random.default_rng(1).integers(1, NEW + 1, len(prompts)).tolist()
  return [Request(*pair) for pair in zip(prompts, limits, strict=True)]


@pytest.fixture(scope="module")
def plain(small, prompts):
  """What `generate` writes, without an end."""
  return generate(*small, prompts, SAMPLER, max_new_tokens=NEW, eos_ids=(), **SAME)


def _cut(completion, length, finished):
  return dataclasses.replace(
    completion,
    tokens=completion.tokens[:length],
    log_probs=completion.log_probs[:length],
    finished=finished,
  )


def _same(found, expected):
  """Whether `found`, in any order, is `expected`."""
  assert sorted(c.prompt for c in found) == list(range(len(expected)))
  for completion in found:
    other = expected[completion.prompt]
    assert (completion.tokens, completion.finished) == (other.tokens, other.finished)
    np.testing.assert_allclose(completion.log_probs, other.log_probs, atol=1e-4)


def test_completions_are_those_of_generate(small, requests, plain):
  """Also after the ring has gone round: 146 tokens pass through its 64 slots."""
  eos = plain[3].tokens[0]  # so that a row ends with its first token
  expected = []
  for request, whole in zip(requests, plain, strict=True):
    tokens = whole.tokens[: request.max_new_tokens]
    length = tokens.index(eos) + 1 if eos in tokens else len(tokens)
    expected.append(_cut(whole, length, eos in tokens))
  found = list(serve(*small, requests, SAMPLER, eos_ids=(eos,), **ROWS, **SAME))
  _same(found, expected)
  assert [c.prompt for c in found] != sorted(c.prompt for c in found)  # as they finish


def test_stop_strings(small, requests, plain, byte_tokenizer):
  """Each row is cut where `Reader` finds the string in what `generate` writes."""
  text = byte_tokenizer.decode(plain[1].tokens)
  stop = StopStrings(byte_tokenizer, (next(c for c in text if c.isascii()),))
  eos = plain[3].tokens[0]
  expected = []
  for request, whole in zip(requests, plain, strict=True):
    reader, length = stop.reader(), 0
    for token in whole.tokens[: request.max_new_tokens]:
      reader.push(token)
      length += 1
      if reader.stopped or token == eos:
        break
    expected.append(_cut(whole, length, reader.stopped or whole.tokens[length - 1] == eos))
  assert expected[1].finished
  _same(list(serve(*small, requests, SAMPLER, eos_ids=(eos,), stop=stop, **ROWS, **SAME)), expected)


def test_requests_are_taken_as_rows_become_free(small, plain):
  """From a queue without an end."""
  taken, eos = [], plain[3].tokens[0]

  def endless():
    for i in itertools.count():
      taken.append(i)
      yield Request([i % 300], 1 + i % 3)

  queue = serve(*small, endless(), SAMPLER, eos_ids=(eos,), **ROWS)
  found = list(itertools.islice(queue, 10))
  assert len({c.prompt for c in found}) == 10 and len(taken) <= 15
  assert all(len(c.tokens) == 1 + c.prompt % 3 or c.finished for c in found)


@pytest.mark.parametrize("stacked", [True, False])
def test_rows_are_put_behind_the_next_slot(stacked):
  """Of stacks and of an array a layer: 3 rows of 5 slots, of which 7 of another are too many."""
  kept, new = np.zeros((2, 3, 1, 1, 5)), np.arange(1.0, 15).reshape(2, 1, 1, 1, 7)
  pairs = [Slots(jnp.asarray(x), jnp.asarray(x.swapaxes(3, 4))) for x in (kept, new)]
  if not stacked:
    pairs = [tuple(Slots(x.keys[i], x.values[i]) for i in range(2)) for x in pairs]
  positions = [jnp.full((3, 5), -1), jnp.array([[-1, -1, -1, 0, 1, 2, 3]])]
  ring = Cache(pairs[0], positions[0], jnp.int32(2))
  found = ring.insert(Cache(pairs[1], positions[1], jnp.int32(7)), jnp.array([1]))
  both = found.layers if stacked else jax.tree.map(lambda *x: jnp.stack(x), *found.layers)
  keys, values = both.keys, both.values
  for layer in range(2):
    np.testing.assert_array_equal(keys[layer, 1, 0, 0], 7 * layer + np.array([6, 7, 3, 4, 5]))
  np.testing.assert_array_equal(keys, values.swapaxes(3, 4))
  assert not keys[:, [0, 2]].any()
  assert found.positions.tolist() == [[-1] * 5, [2, 3, -1, 0, 1], [-1] * 5]
  left_out = ring.insert(Cache(pairs[1], positions[1], jnp.int32(7)), jnp.array([3]))
  np.testing.assert_array_equal(left_out.positions, ring.positions)


def test_no_requests(small):
  assert list(serve(*small, [], SAMPLER, eos_ids=(), **ROWS)) == []


@pytest.mark.parametrize(
  ("request_", "told"),
  [
    (Request([], 2), "prompt 0 is empty"),
    (Request([1], 0), "max_new_tokens is 0"),
    (Request([1] * 50, 4), "50 tokens, which with max_new_tokens 4 exceeds the 52 slots of a row"),
  ],
)
def test_what_cannot_be_served(small, request_, told):
  with pytest.raises(ValueError, match=told):
    list(serve(*small, [request_], SAMPLER, eos_ids=(), **ROWS))
