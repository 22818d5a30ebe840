"""Calibration of tokens against one whole softmax, and a temperature against a plain search."""

from pathlib import Path

import numpy as np
import pytest
import scipy.optimize

from research.evals import build, reliability
from research.evals.rolling import windows


def test_bins_and_their_error():
  confidence = np.array([0.05, 0.3, 0.35, 0.5, 1.0])
  right = np.array([False, True, False, True, True])
  rows = reliability.table(confidence, right, bins=4)
  assert [row["count"] for row in rows] == [1, 2, 1, 1]
  assert [row["accuracy"] for row in rows] == [0, 0.5, 1, 1]
  assert rows[1]["confidence"] == pytest.approx(0.325)
  assert (rows[3]["from"], rows[3]["to"]) == (0.75, 1)
  error = (1 * 0.05 + 2 * 0.175 + 1 * 0.5 + 0) / 5
  assert reliability.calibration_error(rows) == pytest.approx(error)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  root = tmp_path_factory.mktemp("calibration")
  (root / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 5)
  return {"name": "text", "path": str(root / "text.txt"), "cache": str(root / "cache")}


def test_against_whole_logits(model, variables, tokenizer, data):
  section = {"name": "token_calibration", "data": data, "length": 32, "context": 8, "bins": 10}
  (evaluator,) = build([{**section, "batch_size": 8}])
  result = evaluator(model, variables, tokenizer)

  text = "The quick brown fox jumps over the lazy dog. " * 5
  tokens = np.array([tokenizer.bos_id, *tokenizer.encode(text, add_special=False)])
  plan = list(windows(len(tokens), 32, 8))
  logits, targets, owner = [], [], []
  shown = np.stack([np.resize(tokens[w.start : w.stop - 1], 32) for w in plan])
  for i, (w, found) in enumerate(zip(plan, np.asarray(model.apply(variables, shown)), strict=True)):
    logits.append(found[w.first - w.start - 1 : w.stop - w.start - 1].astype(np.float64))
    targets.append(tokens[w.first : w.stop])
    owner += [i] * (w.stop - w.first)
  logits, targets, owner = np.concatenate(logits), np.concatenate(targets), np.array(owner)

  def softmax(at, temperature=1.0):
    p = np.exp((logits[at] - logits[at].max(axis=1, keepdims=True)) / temperature)
    return p / p.sum(axis=1, keepdims=True)

  def nll(at, temperature=1.0):
    return -np.log(softmax(at, temperature)[np.arange(at.sum()), targets[at]]).mean()

  def error(at, temperature=1.0):
    p = softmax(at, temperature)
    right = p.argmax(axis=1) == targets[at]
    number = np.minimum((p.max(axis=1) * 10).astype(int), 9)
    return sum(abs((right - p.max(axis=1))[number == i].sum()) for i in range(10)) / at.sum()

  everything, fitted, held_out = owner >= 0, owner % 2 == 0, owner % 2 == 1
  p = softmax(everything)
  metrics = result.metrics
  assert metrics["tokens"] == len(tokens) - 1
  assert metrics["accuracy"] == pytest.approx(np.mean(p.argmax(axis=1) == targets))
  assert metrics["confidence"] == pytest.approx(p.max(axis=1).mean(), rel=1e-5)
  hot = np.eye(p.shape[1])[targets]
  assert metrics["brier"] == pytest.approx(((p - hot) ** 2).sum(axis=1).mean(), rel=1e-5)
  assert metrics["nll_per_token"] == pytest.approx(nll(everything), rel=1e-5)
  assert metrics["calibration_error"] == pytest.approx(error(everything), rel=1e-4)
  best = scipy.optimize.minimize_scalar(
    lambda t: nll(fitted, t), bounds=(0.05, 20), method="bounded", options={"xatol": 1e-6}
  ).x
  assert abs(best - 1) > 0.1  # else nothing was searched for
  assert metrics["temperature"] == pytest.approx(best, rel=1e-3)
  assert metrics["held_out/nll_before"] == pytest.approx(nll(held_out), rel=1e-5)
  assert metrics["held_out/nll_after"] == pytest.approx(nll(held_out, best), rel=1e-4)
  after = metrics["held_out/calibration_error_after"]
  assert after == pytest.approx(error(held_out, best), rel=1e-2)
  assert metrics["held_out/calibration_error_before"] == pytest.approx(error(held_out), rel=1e-4)

  assert sum(row["count"] for row in result.tables["reliability"]) == metrics["tokens"]
  low, high = result.intervals["brier"]
  assert low < metrics["brier"] < high
  for name, (field, weight) in result.means.items():
    own = [record for record in result.records if field in record]
    total = sum(record[field] for record in own) / sum(record[weight] for record in own)
    assert metrics[name] == pytest.approx(total)


def test_errors(model, variables, tokenizer, data):
  with pytest.raises(ValueError, match="bins is 0"):
    build([{"name": "token_calibration", "data": data, "bins": 0}])
  short = {**data, "path": data["path"].replace("text.txt", "short.txt")}
  Path(short["path"]).write_text("One window.")
  (evaluator,) = build([{"name": "token_calibration", "data": short}])
  with pytest.raises(ValueError, match="takes two windows"):
    evaluator(model, variables, tokenizer)
