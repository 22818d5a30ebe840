"""Rows of several lengths against one forward pass a row."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from research.evals import bootstrap, build
from research.models.decoder import Decoder

TEXT = "The quick brown fox jumps over the lazy dog; " * 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  root = tmp_path_factory.mktemp("lengths")
  (root / "text.txt").write_text(TEXT)
  return {"name": "text", "path": str(root / "text.txt"), "cache": str(root / "cache")}


def nats(model, variables, rows, targets):
  """`[rows, tokens]` of the last targets of rows of one length."""
  logits = np.asarray(model.apply(variables, jnp.asarray(rows)), np.float64)[:, -targets.shape[1] :]
  logits -= logits.max(axis=-1, keepdims=True)
  logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  return -np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def test_same_tokens_after_more_and_less(model, variables, tokenizer, data):
  section = {"name": "lengths", "data": data, "lengths": (12, 40), "last": 8, "batch_size": 4}
  (evaluator,) = build([section])
  result = evaluator(model, variables, tokenizer)
  tokens = np.array(tokenizer.encode(TEXT, add_special=False))
  stops = range(40, len(tokens) + 1, 39)  # 39 tokens behind BOS, and the one that follows
  assert result.metrics["pieces"] == len(stops) == 6
  found = {}
  for length in (12, 40):
    rows = [[tokenizer.bos_id, *tokens[stop - length : stop - 1]] for stop in stops]
    targets = np.array([tokens[stop - 8 : stop] for stop in stops])
    found[length] = nats(model, variables, rows, targets)
    expected = found[length].mean()
    assert result.metrics[f"nll/{length}"] == pytest.approx(expected, rel=1e-5)
    assert result.metrics[f"perplexity/{length}"] == pytest.approx(math.exp(expected), rel=1e-4)
  change = (found[40] - found[12]).sum(axis=1)
  assert result.metrics["nll_change/40"] == pytest.approx(change.sum() / 48, rel=1e-4)
  interval = bootstrap.interval(change.tolist(), [8] * 6)
  assert result.intervals["nll_change/40"] == pytest.approx(interval, rel=1e-4)
  for name, (field, weight) in result.means.items():
    total = sum(r[field] for r in result.records) / sum(r[weight] for r in result.records)
    assert result.metrics[name] == pytest.approx(total)

  targets = np.array([tokens[stop - 39 : stop] for stop in stops])
  whole = nats(model, variables, rows, targets)  # after 2 to 40 tokens
  table = result.tables["positions"]
  assert [(row["from"], row["to"]) for row in table] == [
    (2, 4),
    (4, 8),
    (8, 16),
    (16, 32),
    (32, 41),
  ]
  assert table[1]["nll"] == pytest.approx(whole[:, 2:6].mean(), rel=1e-5)
  assert [row["beyond"] for row in result.tables["lengths"]] == [0, 0]
  assert not result.samples


def test_beyond_the_trained_positions(model, variables, tokenizer, data):
  section = {"name": "lengths", "data": data, "lengths": (64, 128), "last": 8, "bos": False}
  (evaluator,) = build([section])
  result = evaluator(model, variables, tokenizer)
  assert [row["beyond"] for row in result.tables["lengths"]] == [0, 1]
  assert result.samples == ["lengths 128: beyond the 96 positions that the model was made for"]
  learned = Decoder(model.config.__class__(**{**vars(model.config), "rope": None}))
  with pytest.raises(ValueError, match="length 128 is more than the 96 positions of the model's"):
    evaluator(learned, variables, tokenizer)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"lengths": (64,)}, "two or more, each larger"),
    ({"lengths": (64, 32)}, "two or more, each larger"),
    ({"lengths": (8, 32), "last": 8}, "last is 8; of rows of 8 tokens 1 to 7"),
    ({"lengths": (32, 512), "last": 8}, "takes documents of 512 tokens; the longest has 270"),
  ],
)
def test_errors(model, variables, tokenizer, data, settings, message):
  with pytest.raises(ValueError, match=message):
    build([{"name": "lengths", "data": data, **settings}])[0](model, variables, tokenizer)
