"""Rows with classes, rows of pairs and masked texts: from columns to the arrays of a batch."""

import json

import numpy as np
import pytest

from research.core.config import Config, ConfigError
from research.data import denoising, formats, packing, pipeline
from research.data.examples import BadRow

CLS, SEP, MASK = 2, 3, 4
CONFIG = {
  "length": 12,
  "target_length": 0,
  "packing": "best_fit",
  "buckets": (),
  "completion_only": True,
  "corruption": {},
  "on_bad_row": "drop",
  "on_long_row": "truncate",
  "shuffle": True,
  "window": 8,
}


@pytest.fixture
def source(tmp_path):
  def write(rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "jsonl", "path": str(file), "cache": str(tmp_path / "cache")}

  return write


@pytest.fixture
def read(wordpiece):
  return lambda **row: formats.tokenize(row, wordpiece, completion_only=True)


def test_a_text_has_its_class_at_the_first_token(read):
  example = read(text="The cat runs", label=3)
  assert example.tokens.tolist() == [CLS, 5, 6, 9, SEP]
  assert example.labels.tolist() == [3, 0, 0, 0, 0]
  assert example.weights_mask.tolist() == [True, False, False, False, False]
  assert example.form == ("labels", "types") and example.closing == 1


def test_a_pair_of_texts_has_two_types(read):
  example = read(text="the cat", text_pair="runs", label=0, idx=7)
  assert example.tokens.tolist() == [CLS, 5, 6, SEP, 9, SEP]
  assert example.types.tolist() == [0, 0, 0, 0, 1, 1]


def test_words_have_their_class_at_their_first_token(read):
  example = read(tokens=["The", "cats", "running"], labels=[2, 1, -100])
  assert example.tokens.tolist() == [CLS, 5, 6, 12, 11, 10, SEP]
  assert example.labels.tolist() == [0, 2, 1, 0, 0, 0, 0]
  assert example.weights_mask.tolist() == [False, True, True, False, False, False, False]


@pytest.mark.parametrize(
  ("row", "told"),
  [
    ({"text": "a", "label": "good"}, "holds 'good'; classes count from 0"),
    ({"text": "a", "label": -1}, "holds -1"),
    ({"text": 3, "label": 1}, "'text' is int, not a string"),
    ({"tokens": "the cat", "labels": [1]}, "'tokens' is not a list of strings"),
    ({"tokens": ["the"], "labels": [1, 2]}, "not a list of 1 classes"),
    ({"tokens": ["the"], "labels": [-100]}, "nothing to learn"),
    ({"anchor": "a", "positive": None}, "fit no format"),
  ],
)
def test_a_bad_row_says_why(read, row, told):
  with pytest.raises(BadRow, match=told):
    read(**row)


def test_truncation_keeps_the_frame(read):
  long = read(text="the cat runs , the dog runs", label=1)
  (cut,) = formats.fit(long, 5, "truncate")
  assert cut.tokens.tolist() == [CLS, 5, 6, 9, SEP]
  assert cut.labels[0] == 1 and len(cut.types) == 5
  pair = read(anchor="the cat runs , the dog runs", positive="sad", negative="the sad dog runs")
  assert pair.parts == (9, 3, 6)
  (cut,) = formats.fit(pair, 12, "truncate")
  assert cut.parts == (4, 3, 4)
  assert cut.tokens.tolist() == [CLS, 5, 6, SEP, CLS, 13, SEP, CLS, 5, 13, SEP]


def _batches(config, source, tokenizer, count, **changes):
  config = Config({**CONFIG, "source": source, **changes})
  batches = pipeline.train_batches(config, tokenizer, batch_size=2, seed=0)
  found = [next(batches) for _ in range(count)]
  batches.close()
  return found


def test_classified_documents_share_rows(source, wordpiece):
  rows = [{"text": "the " * n + "cat", "label": n} for n in range(1, 5)]
  (batch,) = _batches(CONFIG, source(rows), wordpiece, 1)
  assert set(batch) == {"tokens", "labels", "types", "weights", "segments", "positions"}
  first = (batch["positions"] == 0) & (batch["segments"] > 0)
  assert first.sum() == 4 and batch["segments"].max() > 1
  np.testing.assert_array_equal(batch["weights"], first)
  assert sorted(batch["labels"][first]) == [1, 2, 3, 4]
  # Each label is that of its own document: of so many `the`.
  for r, row in enumerate(batch["segments"]):
    for number in range(1, row.max() + 1):
      here = row == number
      assert batch["labels"][r][here][0] == (batch["tokens"][r][here] == 5).sum()


def test_pairs_have_a_row_each_and_roles(source, wordpiece):
  rows = [{"anchor": "the cat", "positive": "cats", "negative": "the dog , sad"}]
  rows += [{"anchor": "runs", "positive": "running"}]
  (batch,) = _batches(CONFIG, source(rows), wordpiece, 1, packing="none", length=16)
  assert set(batch) == {"tokens", "roles", "weights", "segments", "positions"}
  order = np.argsort(-batch["segments"].max(axis=1))
  assert batch["roles"][order[0]].tolist() == [1] * 4 + [2] * 4 + [3] * 6 + [0] * 2
  assert batch["roles"][order[1]].tolist() == [1] * 3 + [2] * 4 + [0] * 9
  np.testing.assert_array_equal(batch["segments"], batch["roles"])
  assert batch["positions"][order[0]].tolist() == [*range(4), *range(4), *range(6), 0, 0]
  assert batch["weights"].sum(axis=1).tolist() == [1, 1]
  with pytest.raises(ValueError, match="need data.packing='none'"):
    _batches(CONFIG, source(rows), wordpiece, 1)


def test_kinds_of_rows_do_not_mix(source, wordpiece):
  rows = [{"text": "the cat", "label": 1}, {"text": "the cat"}]
  with pytest.raises(ValueError, match=r"not some with labels\+types and targets"):
    _batches(CONFIG, source(rows), wordpiece, 1)


def _masked(source, wordpiece, count, **corruption):
  rows = [{"text": "the cats running , the sad dog runs"}]
  return _batches(
    CONFIG, source(rows), wordpiece, count, length=16, corruption={"name": "mask", **corruption}
  )


def test_masked_tokens_are_drawn_anew_and_predicted_in_place(source, wordpiece):
  whole = [CLS, 5, 6, 12, 11, 10, 15, 5, 13, 7, 9, SEP]
  chosen, shares = [], []
  for batch in _masked(source, wordpiece, 120, rate=0.5):
    assert set(batch) == {"tokens", "labels", "weights", "segments", "positions"}
    real = batch["segments"] > 0
    at = batch["weights"] > 0
    tokens = np.tile(whole, real.sum() // len(whole))
    np.testing.assert_array_equal(np.where(at, batch["labels"], batch["tokens"])[real], tokens)
    assert not at[real & (batch["positions"] % 11 == 0)].any()  # the frame
    chosen.append(tuple(at[real]))
    shares.append((batch["tokens"][at] == MASK).mean())
  assert len(set(chosen)) > 60
  assert 0.75 < np.mean(shares) < 0.88  # 0.8, and 0.1 of 19 tokens
  share = np.mean([np.mean(at) for at in chosen])
  assert abs(share - 0.5 * 10 / 12) < 0.05


def test_whole_words_are_masked_together(source, wordpiece):
  words = np.array([0, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 0])
  for batch in _masked(source, wordpiece, 20, rate=0.5, whole_words=True):
    for row, segments in zip(batch["weights"], batch["segments"], strict=True):
      if segments.any():
        at = row[segments > 0].reshape(-1, len(words))
        np.testing.assert_array_equal(at[:, 2], at[:, 3])
        np.testing.assert_array_equal(at[:, 4], at[:, 5])


def test_what_cannot_be_masked(wordpiece, byte_tokenizer):
  section = Config({"name": "mask"}, "data.train.corruption")
  with pytest.raises(ValueError, match="the tokenizer has no mask token"):
    denoising.build(section, byte_tokenizer)
  with pytest.raises(ValueError, match="are shares"):
    denoising.build(Config({"name": "mask", "masked": 0.9, "random": 0.2}, "x"), wordpiece)
  with pytest.raises(ConfigError, match="did you mean 'whole_words'"):
    denoising.build(Config({"name": "mask", "whole_word": True}, "x"), wordpiece)
  denoiser = denoising.build(section, wordpiece)
  labelled = formats.tokenize({"text": "cat", "label": 1}, wordpiece, completion_only=True)
  with pytest.raises(BadRow, match="with labels"):
    denoiser.check(labelled)
  with pytest.raises(BadRow, match="too short"):
    denoiser.check(formats.tokenize({"text": ""}, wordpiece, completion_only=True))


def test_an_empty_share_of_a_batch_has_the_keys_of_the_whole():
  assert packing.form_of([[], []]) == ("targets",)
  empty = packing.assemble([[]], 4, 0, form=("labels", "types"))
  assert set(empty) == {"tokens", "labels", "types", "weights", "segments", "positions"}
