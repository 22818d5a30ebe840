"""Figures of a classifier by their definitions, and the evaluator on a model that knows words."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research import evals, models
from research.core import tree
from research.evals import classification


def _record(expected, predicted):
  right = sum(a == b for a, b in zip(expected, predicted, strict=True))
  return {"correct": right, "labels": len(expected), "expected": expected, "predicted": predicted}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=30))
def test_figures_follow_their_definitions(pairs):
  expected, predicted = (np.array(side) for side in zip(*pairs, strict=True))
  counts = classification._counts(_record(expected.tolist(), predicted.tolist()), 3)[..., None]
  # Matthews by Gorodkin's definition: the correlation of one-hot vectors.
  x, y = np.eye(3)[predicted], np.eye(3)[expected]
  cov = lambda a, b: ((a - a.mean(0)) * (b - b.mean(0))).sum()  # noqa: E731
  spread = np.sqrt(cov(x, x) * cov(y, y))
  want = cov(x, y) / spread if spread > 1e-9 else 0.0
  np.testing.assert_allclose(classification._matthews(counts)[0], want, atol=1e-9)
  each = []
  for c in set(expected) | set(predicted):
    right = ((expected == c) & (predicted == c)).sum()
    precision, recall = (
      right / max((predicted == c).sum(), 1),
      right / max((expected == c).sum(), 1),
    )
    each.append(2 * precision * recall / (precision + recall) if right else 0.0)
  np.testing.assert_allclose(classification._f1(counts)[0], np.mean(each), atol=1e-9)


@pytest.fixture(scope="module")
def knows():
  """A classifier of which the class is whether the word after [CLS] is `glad` (14)."""
  shape = {"model_type": "bert", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 8}
  shape |= {"num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 16}
  architecture = {"architectures": ["BertForTokenClassification"], "num_labels": 2}
  model = models.build(shape | architecture)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  params = tree.map_with_path(lambda p, x: x if p.endswith("scale") else 0 * x, params)
  table = params["embed"]["embedding"].at[:, 0].set(-1.0).at[14, 0].set(1.0)
  params["embed"]["embedding"] = table
  kernel = params["classifier"]["out"]["kernel"]
  params["classifier"]["out"]["kernel"] = kernel.at[0, 1].set(1.0)
  return model, {"params": params}


def test_every_document_is_judged_once(knows, wordpiece, tmp_path):
  model, variables = knows
  rows = [
    {"tokens": ["the", "glad", "cat"], "labels": [0, 1, 0]},
    {"tokens": ["glad", "glad", "sad", "dog"], "labels": [1, 0, 0, -100]},
    {"tokens": ["sad"], "labels": [1]},
  ]
  file = tmp_path / "rows.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  data = {"name": "jsonl", "path": str(file), "cache": str(tmp_path / "cache")}
  section = {"name": "classification", "data": data, "batch_size": 2, "length": 8}
  (evaluator,) = evals.build([section])
  result = evaluator(model, variables, wordpiece)
  told = [(r["expected"], r["predicted"], r["correct"]) for r in result.records]
  assert told == [([0, 1, 0], [0, 1, 0], 3), ([1, 0, 0], [1, 1, 0], 2), ([1], [0], 0)]
  assert result.metrics["accuracy"] == 5 / 7 and result.metrics["labels"] == 7
  np.testing.assert_allclose(result.metrics["f1"], 2 / 3)
  np.testing.assert_allclose(result.metrics["matthews"], (2 * 3 - 1 * 1) / 12)
  for name, (low, high) in result.intervals.items():
    assert low <= result.metrics[name] <= high
  (difference,) = evals.compare(result, result)
  assert difference.metric == "accuracy" and difference.difference == 0

  def refused(told, model=model, **changes):
    with pytest.raises(ValueError, match=told):
      evals.build([section | changes])[0](model, variables, wordpiece)

  refused("length 17 is not within 2 and the model's 16", length=17)
  file.write_text(json.dumps({"tokens": ["the"], "labels": [2]}) + "\n")
  refused("row 0 is of an unknown class: 2, and there are 2")
  file.write_text(json.dumps({"text": "the"}) + "\n")
  refused("row 0 is without a label")
  llama = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
  llama |= {"num_hidden_layers": 1, "num_attention_heads": 1}
  refused("needs an encoder with classes", model=models.build(llama))
