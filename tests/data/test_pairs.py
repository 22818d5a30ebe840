"""Pairs of source and target: tokens, packing, batches, and T5's span corruption."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.config import Config
from research.data import denoising, formats, packing, pipeline
from research.data.formats import BadRow, Example

START = 7
CONFIG = {
  "length": 24,
  "target_length": 20,
  "packing": "best_fit",
  "buckets": (),
  "completion_only": True,
  "corruption": {},
  "on_bad_row": "drop",
  "on_long_row": "drop",
  "shuffle": True,
  "window": 16,
}


def test_both_sides_end_with_eos(byte_tokenizer):
  row = {"prompt": "ab", "completion": "c", "other": 3}
  pair = formats.tokenize_pair(row, byte_tokenizer, start_id=START)
  eos = byte_tokenizer.eos_ids[0]
  assert pair.source.tolist() == [*byte_tokenizer.encode("ab"), eos]
  assert pair.tokens.tolist() == [START, *byte_tokenizer.encode("c"), eos]
  assert pair.weights_mask.all() and pair.source.dtype == pair.tokens.dtype == np.int32
  with pytest.raises(BadRow, match=r"no 'completion' in \['prompt', 'text'\]"):
    formats.tokenize_pair({"prompt": "a", "text": "b"}, byte_tokenizer, start_id=START)


@given(
  st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=60),
)
def test_packed_pairs_fit_on_both_sides(lengths):
  bins = packing.best_fit_pairs(lengths, (30, 20))
  assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
  sums = np.array([np.sum([lengths[i] for i in b], axis=0) for b in bins])
  assert (sums <= [30, 20]).all()
  # No two bins fit in one: neither of them was opened without need.
  for i in range(len(bins)):
    for j in range(i):
      assert (sums[i] + sums[j] > [30, 20]).any()


@pytest.fixture(scope="module")
def rows():
  rng = np.random.default_rng(0)
  letters = np.array(list("abcdefgh"))
  text = lambda most: "".join(rng.choice(letters, rng.integers(1, most)))  # noqa: E731
  return [{"prompt": text(12), "completion": text(9)} for _ in range(40)]


def _config(tmp_path, rows, **changes):
  (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
  source = {"name": "jsonl", "path": str(tmp_path / "rows.jsonl"), "cache": str(tmp_path / "cache")}
  return SimpleNamespace(**{**CONFIG, "source": source, **changes})


def _pairs(batch, tokenizer):
  """The texts of every pair of a batch, found by its segments."""
  found = []
  for r in range(len(batch["tokens"])):
    assert {*batch["segments"][r], 0} == {*batch["source_segments"][r], 0}
    for segment in range(1, batch["segments"][r].max() + 1):
      here = batch["segments"][r] == segment
      there = batch["source_segments"][r] == segment
      assert batch["positions"][r][here].tolist() == list(range(here.sum()))
      assert batch["source_positions"][r][there].tolist() == list(range(there.sum()))
      tokens, targets = batch["tokens"][r][here], batch["targets"][r][here]
      assert tokens[0] == START and tokens[-1] == tokenizer.eos_ids[0]
      np.testing.assert_array_equal(tokens[1:], targets[:-1])
      assert batch["weights"][r][here].tolist() == [1.0] * (here.sum() - 1) + [0.0]
      texts = (batch["source_tokens"][r][there], tokens[1:])
      found.append(tuple(tokenizer.decode(text) for text in texts))
  return found


@pytest.mark.parametrize(
  ("changes", "widths"),
  [
    ({}, {(24, 20)}),
    ({"packing": "none", "buckets": (8,)}, {(24, 20), (24, 8), (8, 20), (8, 8)}),
  ],
)
def test_every_pair_comes_once_an_epoch(tmp_path, rows, byte_tokenizer, changes, widths):
  config = _config(tmp_path, rows, **changes)
  batches = pipeline.eval_batches(config, byte_tokenizer, batch_size=4, start_id=START)
  batches = list(batches)
  seen = {(b["source_tokens"].shape[1], b["tokens"].shape[1]) for b in batches}
  assert seen <= widths and all(len(b["tokens"]) == len(b["source_tokens"]) == 4 for b in batches)
  found = [pair for batch in batches for pair in _pairs(batch, byte_tokenizer)]
  assert sorted(found) == sorted((row["prompt"], row["completion"]) for row in rows)


def test_training_goes_on_where_it_was(tmp_path, rows, byte_tokenizer):
  def batches():
    config = _config(tmp_path, rows)
    return pipeline.train_batches(config, byte_tokenizer, batch_size=2, seed=0, start_id=START)

  first, again = batches(), batches()
  for _ in range(5):
    next(first)
  again.set_state(first.get_state())
  for _ in range(5):
    a, b = next(first), next(again)
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def test_long_pairs(tmp_path, byte_tokenizer):
  rows = [{"prompt": "a" * 40, "completion": "b"}, {"prompt": "a", "completion": "b" * 40}]
  config = _config(tmp_path, rows, on_long_row="truncate")
  (batch,) = pipeline.eval_batches(config, byte_tokenizer, batch_size=2, start_id=START)
  assert batch["source_segments"].sum() == 24 + 2 and batch["segments"].sum() == 20 + 3
  with pytest.raises(ValueError, match="pairs are truncated or dropped"):
    config = _config(tmp_path, rows, on_long_row="split")
    pipeline.eval_batches(config, byte_tokenizer, batch_size=2, start_id=START)
  with pytest.raises(ValueError, match="target_length 20 is of encoder-decoders"):
    pipeline.eval_batches(_config(tmp_path, rows), byte_tokenizer, batch_size=2)


class Tokens:
  """A vocabulary of numbers, of which the last 100 are sentinels, without BOS."""

  vocab_size, bos_id, eos_ids = 1000, None, (2,)

  def token_id(self, token):
    return {"[S]": 5}[token]


def _denoiser(**section):
  return denoising.build(Config(section, "data.train.corruption"), Tokens(), START)


def test_dropped_spans_are_t5s_inputs_and_targets():
  denoiser = _denoiser(name="spans", sentinels=100)
  # T5's own: 568 tokens make inputs of 512 and targets of 114, with EOS; ours have a start, too.
  raw = denoiser.raw_length(512, 115)
  assert raw == 568
  body = np.arange(10, 10 + raw, dtype=np.int32)
  pair = denoiser(Example(body, np.ones(raw, bool)), np.random.default_rng(0))
  assert (len(pair.source), len(pair)) == (512, 115) and pair.prefix == 0
  assert pair.source[-1] == pair.tokens[-1] == 2 and pair.tokens[0] == START
  assert pair.weights_mask[1:].all() and not denoiser.bidirectional
  # Sentinels come in order on both sides; put back, the spans give the document.
  spans = np.split(pair.tokens[1:-1], np.flatnonzero(pair.tokens[1:-1] > 899))[1:]
  assert [span[0] for span in spans] == list(range(999, 999 - len(spans), -1))
  inputs = np.split(pair.source[:-1], np.flatnonzero(pair.source[:-1] > 899))
  parts = [inputs[0]]
  for span, rest in zip(spans, inputs[1:], strict=True):
    assert span[0] == rest[0]
    parts += [span[1:], rest[1:]]
  np.testing.assert_array_equal(np.concatenate(parts), body)


def test_a_prefix_is_a_source():
  denoiser = _denoiser(name="prefix", mode="[S]")
  raw = denoiser.raw_length(30, 20)
  body = np.arange(10, 10 + raw, dtype=np.int32)
  longest = [0, 0]
  for seed in range(200):
    pair = denoiser(Example(body, np.ones(raw, bool)), np.random.default_rng(seed))
    assert pair.source[0] == 5 and pair.source[-1] == 2 and pair.tokens[0] == START
    np.testing.assert_array_equal([*pair.source[1:-1], *pair.tokens[1:]], body)
    longest = np.maximum(longest, [len(pair.source), len(pair)])
  assert longest.tolist() == [21, 20]
