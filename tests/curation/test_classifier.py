"""A classifier set by hand, whose probabilities have a closed form, and the rows that it takes."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import curation, models
from research.core import tree
from research.curation.classifier import Classifier, windows
from research.curation.step import Ledger, Rows

SHAPE = {
  "model_type": "bert",
  "vocab_size": 19,
  "hidden_size": 8,
  "intermediate_size": 8,
  "num_hidden_layers": 1,
  "num_attention_heads": 1,
  "max_position_embeddings": 16,
}
HEAD = {"architectures": ["BertForSequenceClassification"], "classifier_pooling": "mean"}
SAD = 13  # the token that is toxic
TEXTS = ["the cat runs", "sad cat", "the dog runs the glad cat", "sad sad"]


def logit(sad, tokens):
  """Of the last label, the others' being 0, where so many of a window's tokens are `sad`.

  A token's embedding is ±1 in its first number and 0 in the others, which a norm makes ±√7 there,
  and attention and the MLP add nothing; the mean goes through the pooler's tanh, shifted by √7.
  """
  return 4 * math.tanh(math.sqrt(7) * 2 * sad / tokens) - 1


def sigmoid(x):
  return 1 / (1 + math.exp(-x))


def save(directory, labels, tokenizer):
  named = {"id2label": {str(i): name for i, name in enumerate(labels)}}
  model = models.build(SHAPE | HEAD | named)
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  # What every parameter is without a part in it: scales of norms 1, all others 0.
  params = tree.map_with_path(
    lambda path, x: jnp.full(x.shape, path.endswith("scale"), x.dtype), params
  )
  table = params["embed"]["embedding"].at[:, 0].set(-1.0)
  params["embed"]["embedding"] = table.at[SAD, 0].set(1.0)
  pooler, out = params["pooler"], params["classifier"]["out"]
  pooler["kernel"] = pooler["kernel"].at[0, 0].set(1.0)
  pooler["bias"] = pooler["bias"].at[0].set(math.sqrt(7))
  out["kernel"] = out["kernel"].at[0, -1].set(4.0)
  out["bias"] = out["bias"].at[-1].set(-1.0)
  models.save(directory, model, params, tokenizer)


@pytest.fixture(scope="module")
def root(tmp_path_factory, wordpiece):
  """`toxic`, a classifier of two labels, and `one`, of a single label."""
  root = tmp_path_factory.mktemp("classifiers")
  save(root / "toxic", ("fine", "toxic"), wordpiece)
  save(root / "one", ("toxic",), wordpiece)
  return root


@pytest.fixture
def step(root):
  """A step of the classifier `toxic`, or of another."""

  def make(model="toxic", label="toxic", **fields):
    return Classifier(str(root / model), label, **{"dtype": "float32", "batch_size": 2} | fields)

  return make


def test_rows_go_by_the_labels_probability(step, judged):
  ledger = judged(step(most=0.5, column="toxicity"), TEXTS)
  want = [sigmoid(logit(0, 5)), sigmoid(logit(1, 4)), sigmoid(logit(0, 8)), sigmoid(logit(2, 4))]
  np.testing.assert_allclose(ledger.columns["toxicity"], want, atol=1e-5)
  assert ledger.dropped.tolist() == [False, True, False, True]
  (rule,) = ledger.rules.items()
  assert rule[0] == "toxic above 0.5" and rule[1]["rows"] == 2
  assert rule[1]["examples"][0] == {"row": 101, "detail": f"{want[1]:.4g}", "text": "sad cat"}
  assert ledger.figures["at percentiles"]["100"] == pytest.approx(max(want), abs=1e-5)


def test_at_least_and_a_label_by_its_number(step, judged):
  ledger = judged(step(label=0, least=sigmoid(-logit(1, 4)) - 0.01), TEXTS)
  assert ledger.dropped.tolist() == [False, False, False, True] and not ledger.columns
  assert list(ledger.rules) == [f"label 0 below {sigmoid(-logit(1, 4)) - 0.01:.4g}"]


def test_nothing_is_left_to_judge(step, judged):
  ledger = judged(step(most=0.5, column="toxicity"), [])
  assert len(ledger.columns["toxicity"]) == 0 and not ledger.rules


def test_the_worst_window_of_a_long_text_counts(step, judged):
  end = "cat " * 40 + "sad"
  ledger = judged(step(most=0.5, column="p"), [end, "cat " * 40])
  np.testing.assert_allclose(ledger.columns["p"], [sigmoid(logit(1, 16)), sigmoid(-1)], atol=1e-5)
  assert ledger.dropped.tolist() == [True, False]


def test_the_smallest_probability_counts_where_there_is_a_least(step, judged):
  ledger = judged(step(label="fine", least=0.5, column="p"), ["sad " * 40 + "cat " * 40])
  np.testing.assert_allclose(ledger.columns["p"], [sigmoid(-logit(14, 16))], atol=1e-5)
  assert ledger.dropped.all()


def test_windows_have_the_frame_and_share_a_fourth(wordpiece):
  own = [5, 6, 7, 8, 9, 11, 13, 14, 5]
  text = wordpiece.decode(own)
  assert windows(wordpiece, text, 11) == [[2, *own, 3]]
  assert windows(wordpiece, text, 6) == [[2, *own[i : i + 4], 3] for i in (0, 3, 5)]
  assert windows(wordpiece, text, 3) == [[2, token, 3] for token in own]
  assert windows(wordpiece, "", 6) == [[2, 3]]
  with pytest.raises(ValueError, match="length 2 leaves no room for a text beside 2 special"):
    windows(wordpiece, text, 2)


def test_labels_by_themselves(root, step, judged, tmp_path):
  """As transformers: a sigmoid for many labels at once, and for a single one."""
  file = root / "toxic" / "config.json"
  before = file.read_text()
  file.write_text(json.dumps(json.loads(before) | {"problem_type": "multi_label_classification"}))
  ledger = judged(step(label="fine", most=0.9, column="p"), TEXTS)
  file.write_text(before)
  np.testing.assert_allclose(ledger.columns["p"], 0.5, atol=1e-6)  # whatever the other label's
  (tmp_path / "probabilities.f64").unlink()
  ledger = judged(step("one", most=0.5, column="p"), TEXTS[:2])
  want = [sigmoid(logit(0, 5)), sigmoid(logit(1, 4))]
  np.testing.assert_allclose(ledger.columns["p"], want, atol=1e-5)


def test_it_goes_on_behind_what_is_done(step, memory, tmp_path):
  texts = ["the " * (i % 5) + "sad " * (i % 3) + "cat" for i in range(37)]
  rows = Rows(memory([{"text": text} for text in texts]), np.arange(37))
  own = step(most=0.5, column="p")
  whole = Ledger(rows, tmp_path)
  own.judge(rows, whole)
  tokens = [len(text.split()) + 2 for text in texts]
  want = [sigmoid(logit(i % 3, n)) for i, n in enumerate(tokens)]
  np.testing.assert_allclose(whole.columns["p"], want, atol=1e-5)
  file = tmp_path / "probabilities.f64"
  file.write_bytes(np.full(5, 0.75).tobytes() + file.read_bytes()[40 : 8 * 20 + 3])  # one was cut
  again = Ledger(rows, tmp_path)
  own.judge(rows, again)
  assert again.columns["p"][:5].tolist() == [0.75] * 5  # which nobody asked for again
  np.testing.assert_allclose(again.columns["p"][5:], want[5:], atol=1e-5)


def test_a_runs_directory(root, step, judged, tmp_path):
  run = root / "run"
  run.mkdir()
  (run / "config.json").write_text(json.dumps({"model": {"source": "somewhere"}}))
  (run / "adapter").mkdir()
  with pytest.raises(ValueError, match="has an adapter and no whole model; python -m research.exp"):
    step("run", most=0.5)
  (run / "model").symlink_to(root / "toxic")
  assert judged(step("run", most=0.5), TEXTS).dropped.tolist() == [False, True, False, True]
  assert step("run", most=0.5).reads() == step(most=0.5).reads()
  (root / "one" / "adapter").mkdir()  # a model's own directory stays one
  assert step("one", most=0.5).reads()


def test_without_a_tokenizer(root, step, judged):
  bare = root / "bare"
  bare.mkdir()
  for name in ("config.json", "model.safetensors"):
    (bare / name).symlink_to(root / "toxic" / name)
  with pytest.raises(ValueError, match="bare has no tokenizer"):
    judged(step("bare", most=0.5), TEXTS)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({}, "takes one of most and least"),
    ({"most": 0.5, "least": 0.1}, "takes one of most and least"),
    ({"most": 50}, "a probability is from 0 to 1, not 50"),
    ({"most": 0.5, "batch_size": 0}, "batch_size is at least 1, not 0"),
    ({"most": 0.5, "label": "toxc"}, "no label 'toxc'; it has 0 'fine', 1 'toxic'; did you mean"),
    ({"most": 0.5, "label": 2}, "no label 2; it has 0 'fine', 1 'toxic'"),
    ({"most": 0.5, "label": -1}, "no label -1"),
    ({"most": 0.5, "length": 17}, "length 17 is not within 1 and the model's 16 positions"),
  ],
)
def test_what_cannot_be(step, fields, message):
  with pytest.raises(ValueError, match=message):
    step(**fields)


@pytest.mark.parametrize(
  ("config", "message"),
  [
    (None, "is no classifier: that is a directory with a config.json"),
    (SHAPE, "an encoder with a 'sequence' head, but a bert with head None"),
    (SHAPE | {"architectures": ["BertForTokenClassification"]}, "but a bert with head 'token'"),
    (SHAPE | {"model_type": "llama"}, "but a llama with head None"),
    (SHAPE | HEAD | {"problem_type": "regression"}, "a regression's scores"),
  ],
)
def test_other_models_are_refused_at_once(tmp_path, config, message):
  if config is not None:
    (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=message):
    curation.STEPS["classifier"](str(tmp_path), "toxic", most=0.5)
