"""Perplexity against one forward pass, and against one a token."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research import peft
from research.evals.perplexity import Perplexity
from research.evals.rolling import windows
from research.generation import score

TEXTS = ["Short.", "", "Naïve: " + "the quick brown fox jumps over the lazy dog. " * 4, "x" * 50]


@pytest.fixture
def data(tmp_path):
  path = tmp_path / "texts.jsonl"
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
  return {"name": "jsonl", "path": str(path), "cache": str(tmp_path / "cache")}


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  return logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())


@given(st.integers(0, 200), st.integers(1, 40), st.data())
def test_windows_score_every_token_once_with_its_context(tokens, length, draw):
  context = draw.draw(st.integers(1, length))
  plan = list(windows(tokens, length, context))
  scored = [token for w in plan for token in range(w.first, w.stop)]
  assert scored == list(range(1, tokens))
  for w in plan:
    assert 0 <= w.start < w.first < w.stop <= tokens
    assert w.stop - 1 - w.start <= length
    assert w.first - w.start >= min(context, w.first)
  if tokens > length:  # every window is full: what it shows costs the same and helps
    assert all(w.stop - 1 - w.start == length for w in plan)


def test_text_that_fits_is_one_forward_pass(model, variables, tokenizer, tmp_path):
  text = "Every good boy deserves favour."
  path = tmp_path / "text.txt"
  path.write_text(text)
  data = {"name": "text", "path": str(path), "cache": str(tmp_path / "cache")}
  result = Perplexity(data, length=96, context=48)(model, variables, tokenizer)

  tokens = [tokenizer.bos_id, *tokenizer.encode(text, add_special=False)]
  logits = model.apply(variables, jnp.asarray([tokens]))[0]
  nats = -sum(log_softmax(logits[i])[tokens[i + 1]] for i in range(len(tokens) - 1))
  assert result.metrics["tokens"] == len(text) == len(tokens) - 1
  assert result.metrics["nll_per_token"] == pytest.approx(nats / len(text), rel=1e-6)
  assert result.metrics["perplexity"] == pytest.approx(math.exp(nats / len(text)), rel=1e-5)
  assert result.metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-6)
  assert len(result.records) == 1
  assert "nll_per_token" not in result.intervals  # one window tells nothing of the spread


def test_a_cache_in_few_bits(model, variables, tokenizer, data):
  """A window of recent tokens that holds all of them changes nothing; fewer bits change more."""

  def nats(**cache):
    evaluator = Perplexity(data, length=64, batch_size=2, cache=cache)
    return evaluator(model, variables, tokenizer).metrics["nll_per_token"]

  plain = nats()
  assert nats(kind="int2", group=8, recent=64) == pytest.approx(plain, rel=1e-6)
  eight, two = (abs(nats(kind=kind, group=8, recent=0) - plain) for kind in ("int8", "int2"))
  assert 0 < eight < 1e-3 * plain < two


@pytest.mark.parametrize("bos", [True, False])
def test_rolling_is_one_token_at_a_time(model, variables, tokenizer, data, bos):
  length, context = 24, 9
  evaluator = Perplexity(data, length=length, context=context, batch_size=3, bos=bos)
  result = evaluator(model, variables, tokenizer)

  forward = jax.jit(lambda tokens: model.apply(variables, tokens))
  nats, count, size = 0.0, 0, 0
  for text in TEXTS:
    tokens = [tokenizer.bos_id] * bos + tokenizer.encode(text, add_special=False)
    size += len(text.encode()) - (len(text[:1].encode()) if not bos else 0)
    # Where each token's window starts, told another way than `windows` does.
    start, end = 0, length
    for i in range(1, len(tokens)):
      if i > end:
        start, end = i - context, i - context + length
        if end > len(tokens) - 1:
          start, end = len(tokens) - 1 - length, len(tokens) - 1
      seen = tokens[start:i]
      padded = np.zeros((1, length), np.int32)
      padded[0, : len(seen)] = seen
      nats -= log_softmax(forward(padded)[0, len(seen) - 1])[tokens[i]]
      count += 1
  assert result.metrics["tokens"] == count == sum(r["tokens"] for r in result.records)
  assert result.metrics["bytes"] == size
  assert result.metrics["documents"] == len(TEXTS)
  assert result.metrics["nll_per_token"] == pytest.approx(nats / count, rel=1e-6)
  assert sum(r["nll"] for r in result.records) == pytest.approx(nats, rel=1e-6)
  low, high = result.intervals["nll_per_token"]
  assert low < nats / count < high
  assert result.intervals["perplexity"] == pytest.approx((math.exp(low), math.exp(high)))


def test_by_default_windows_are_as_long_as_the_model_allows(model, variables, tokenizer, data):
  default = Perplexity(data)(model, variables, tokenizer)
  assert default.records == Perplexity(data, 96, 48)(model, variables, tokenizer).records


def test_batch_size_changes_nothing(model, variables, tokenizer, data):
  one, many = (
    Perplexity(data, length=32, context=8, batch_size=size)(model, variables, tokenizer)
    for size in (1, 7)
  )
  assert [r["id"] for r in one.records] == [r["id"] for r in many.records]
  np.testing.assert_allclose(
    [r["nll"] for r in one.records], [r["nll"] for r in many.records], rtol=1e-6
  )


def test_errors(model, variables, tokenizer, data, tmp_path):
  with pytest.raises(ValueError, match="length 97 is more than the model's 96 positions"):
    Perplexity(data, length=97, context=8)(model, variables, tokenizer)
  with pytest.raises(ValueError, match="context 33 is not within 1 and the length, 32"):
    Perplexity(data, length=32, context=33)(model, variables, tokenizer)
  path = tmp_path / "other.jsonl"
  path.write_text('{"texts": "a"}\n')
  other = {"name": "jsonl", "path": str(path), "cache": str(tmp_path / "cache")}
  with pytest.raises(ValueError, match="row 0 has no 'text'; did you mean 'texts'"):
    Perplexity(other, length=32, context=8)(model, variables, tokenizer)
  path.write_text('{"text": ""}\n')
  with pytest.raises(ValueError, match="no token to score in 1 documents"):
    Perplexity(other, length=32, context=8)(model, variables, tokenizer)


def test_windows_begin_with_virtual_tokens(model, variables, tokenizer, data):
  """Every window's tokens are scored as `generation.score` scores them after the adapters'."""
  rules = [{"name": "prompt", "tokens": 3}, {"name": "prefix", "tokens": 2}]
  adapters = peft.attach(rules, variables["params"], jax.random.key(0))
  led = {"params": variables["params"], "adapters": adapters}
  result = Perplexity(data, length=24, context=9, batch_size=3)(model, led, tokenizer)
  shown, scored = [], []
  for text in TEXTS:
    tokens = [tokenizer.bos_id, *tokenizer.encode(text, add_special=False)]
    for window in windows(len(tokens), 24, 9):
      shown.append(tokens[window.start : window.first])
      scored.append(tokens[window.first : window.stop])
  expected = [-sum(log_probs) for log_probs in score(model, led, shown, scored)]
  assert [record["nll"] for record in result.records] == pytest.approx(expected, rel=1e-5)
  with pytest.raises(ValueError, match="more than the model's 91 positions"):
    Perplexity(data, length=92)(model, led, tokenizer)
