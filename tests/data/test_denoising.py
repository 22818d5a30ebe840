"""Problems made of documents: what is asked, what is learnt, and the document back from them."""

import numpy as np
import pytest

from research.core.config import Config, ConfigError
from research.data import denoising
from research.data.examples import BadRow, Example


class Tokens:
  """A vocabulary of numbers, of which the last 30 are sentinels, and three modes."""

  vocab_size, bos_id, eos_ids = 1000, 1, (2, 3)

  def token_id(self, token):
    return {"[R]": 4, "[S]": 5, "[X]": 6, "[SEP]": 7}[token]


TOKENIZER = Tokens()


def build(**section):
  return denoising.build(Config(section, "data.train.corruption"), TOKENIZER)


def document(length=40, prompt=0):
  """`length` tokens between BOS and EOS, all learnt but a prompt."""
  tokens = np.array([1, *range(10, 10 + length), 2], np.int32)
  return Example(tokens, np.arange(length + 2) >= prompt)


def restored(problem, first=969):
  """The document, from the inputs and targets of a problem of spans."""
  tokens = problem.tokens.tolist()
  at = int(np.argmax(problem.weights_mask))
  inputs, targets = tokens[:at], tokens[at:-1]
  spans, found = {}, []
  for token in targets:
    if token > first:
      spans[token] = found = []
    else:
      found.append(token)
  body = [t for token in inputs for t in (spans.pop(token) if token > first else [token])]
  assert not spans and tokens[-1] == 2
  return [token for token in body if token > 9]


def test_none():
  assert build() is None


@pytest.mark.parametrize("mode", ["", "[S]"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_prefix(mode, bidirectional):
  denoiser = build(name="prefix", mode=mode, bidirectional=bidirectional)
  more = len(mode) > 0
  assert denoiser.bidirectional == bidirectional
  assert denoiser.raw_length(50) == 50 - more
  rng = np.random.default_rng(0)
  cuts = set()
  for _ in range(300):
    problem = denoiser(document(8), rng)
    assert problem.tokens.dtype == np.int32
    assert problem.tokens.tolist() == [1, *([5] * more), *range(10, 18), 2]
    cut = int(np.argmax(problem.weights_mask))
    assert problem.weights_mask.tolist() == [i >= cut for i in range(10 + more)]
    assert problem.prefix == (cut if bidirectional else 0)
    cuts.add(cut - more)
  assert cuts == set(range(1, 10))


def test_the_prompt_as_prefix():
  problem = build(name="prefix", split="prompt")(document(8, prompt=4), np.random.default_rng(0))
  assert problem.prefix == 4 and problem.weights_mask.tolist() == [False] * 4 + [True] * 6
  with pytest.raises(BadRow, match="without a prompt"):
    build(name="prefix", split="prompt").check(document(8))


@pytest.mark.parametrize(
  "settings",
  [{}, {"mode": "[R]"}, {"separator": "[SEP]"}, {"mode": "[X]", "separator": "[SEP]"}],
)
@pytest.mark.parametrize(("rate", "mean_span"), [(0.15, 3.0), (0.5, 8.0), (0.5, 2.0)])
def test_spans(settings, rate, mean_span):
  denoiser = build(name="spans", sentinels=30, rate=rate, mean_span=mean_span, **settings)
  rng = np.random.default_rng(0)
  for _ in range(20):
    problem = denoiser(document(), rng)
    assert len(problem.tokens) == len(problem.weights_mask)
    assert restored(problem) == list(range(10, 50))
    at = problem.prefix
    assert not problem.weights_mask[:at].any() and problem.weights_mask[at:].all()
    assert problem.tokens[at] == 999  # The first sentinel.
    head = [1, *([TOKENIZER.token_id(settings["mode"])] if "mode" in settings else []), 10]
    assert problem.tokens[: len(head)].tolist() == head
    assert (problem.tokens[at - 1] == 7) == ("separator" in settings)
  assert build(name="spans", sentinels=30, bidirectional=False)(document(), rng).prefix == 0


@pytest.mark.parametrize("length", [8, 17, 64, 200])
@pytest.mark.parametrize(("rate", "mean_span"), [(0.15, 3.0), (0.5, 1.5), (0.9, 8.0)])
def test_the_longest_document_fits(length, rate, mean_span):
  section = {"name": "spans", "sentinels": 100, "rate": rate, "mean_span": mean_span}
  denoiser = build(**section, mode="[R]", separator="[SEP]")
  raw = denoiser.raw_length(length)
  rng = np.random.default_rng(0)
  body = Example(np.arange(10, 10 + raw, dtype=np.int32), np.ones(raw, bool))
  assert len(denoiser(body, rng)) <= length
  # With its frame a document of one more token is too long.
  assert len(denoiser(document(raw + 1), rng)) > length


def test_a_mixture_keeps_its_weights():
  parts = ({"name": "prefix", "weight": 3}, {"name": "spans", "sentinels": 30})
  denoiser = build(name="mixture", denoisers=parts)
  rng = np.random.default_rng(0)
  spans = sum(int(denoiser(document(), rng).tokens.max() > 969) for _ in range(4000))
  assert abs(spans - 1000) < 4.5 * np.sqrt(4000 * 3 / 16)
  assert denoiser.raw_length(60) == build(**parts[1]).raw_length(60)
  causal = ({"name": "prefix", "bidirectional": False},)
  assert denoiser.bidirectional and not build(name="mixture", denoisers=causal).bidirectional


def test_ul2():
  denoiser = build(name="ul2", regular="[R]", sequential="[S]", extreme="[X]", sentinels=100)
  rng = np.random.default_rng(0)
  original = document(400)
  rates = {4: [], 5: [], 6: []}
  for _ in range(1400):
    problem = denoiser(original, rng)
    mode = int(problem.tokens[1])
    if mode != 5:
      assert restored(problem, 899)[-1] == 409
    learnt = problem.tokens[problem.weights_mask]
    rates[mode].append((learnt < 900).sum() - 1)
  for mode, share in ((4, 2), (5, 1), (6, 4)):
    p = share / 7
    assert abs(len(rates[mode]) - 1400 * p) < 4.5 * np.sqrt(1400 * p * (1 - p))
  assert set(rates[4]) == {60}  # 15 %, whatever the span
  assert set(rates[6]) == {60, 200}
  assert abs(np.mean(rates[5]) / 402 - 0.25) < 0.04


@pytest.mark.parametrize(
  ("section", "told"),
  [
    ({"name": "span"}, "config.data.train.corruption.name is 'span'; did you mean 'spans'"),
    ({"name": "prefix", "split": "half"}, "corruption.split 'half' is neither"),
    ({"name": "prefix", "rate": 0.7}, "corruption.rate 0.7 of split 'random'"),
    ({"name": "spans", "rate": 1.5, "sentinels": 3}, "a rate between 0 and 1"),
    ({"name": "mixture", "denoisers": ()}, "denoisers is empty"),
    ({"name": "mixture", "denoisers": ({"name": "prefix", "weight": 0},)}, r"above 0, not \[0.0\]"),
    ({"name": "ul2", "modes": "[R]"}, "ul2 takes no 'modes'; did you mean 'mode'|'modes'"),
  ],
)
def test_refuses(section, told):
  with pytest.raises((ConfigError, ValueError), match=told):
    build(**section)


def test_refuses_rows_and_lengths():
  spans = build(name="spans", sentinels=3)
  with pytest.raises(ValueError, match="rows of 512 tokens have up to 2. spans, and there are 3 s"):
    spans.raw_length(512)
  with pytest.raises(ValueError, match="no document with a span fits rows of 5 tokens"):
    spans.raw_length(5)
  for denoiser in (spans, build(name="prefix")):
    with pytest.raises(BadRow, match="with a prompt"):
      denoiser.check(document(prompt=4))
  with pytest.raises(BadRow, match="too short to corrupt: it has 3 tokens of at least 4"):
    spans.check(document(1))
  spans.check(document(2))
