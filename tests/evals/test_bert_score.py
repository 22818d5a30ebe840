"""BERTScore against the paper's own package, on a real encoder."""

import numpy as np
import pytest

from research import evals
from research.evals import bootstrap
from research.evals.bert_score import Scorer

bert_score = pytest.importorskip("bert_score")

WRITTEN = ["the cats sat on the mat", "a dog runs in the park quickly", "", "nothing alike"]
REFERENCES = [
  "the cat is sitting on the mat",
  "dogs run in parks",
  "rain",
  "quite other words, more",
]


@pytest.mark.parametrize("layer", [0, 4])
def test_scores_are_the_packages(minilm_path, layer):
  ours = Scorer(str(minilm_path), layer, batch_size=3)(WRITTEN, REFERENCES)
  filled = [i for i, text in enumerate(WRITTEN) if text]
  theirs = bert_score.score(
    [WRITTEN[i] for i in filled],
    [REFERENCES[i] for i in filled],
    model_type=str(minilm_path),
    num_layers=layer or 6,
  )
  np.testing.assert_allclose(ours[filled], np.stack(theirs, axis=1), atol=1e-5)
  assert (ours[WRITTEN.index("")] == 0).all()


def test_corpus(writing, tokenizer, minilm_path):
  data = writing(WRITTEN, REFERENCES)
  section = {"name": "bert_score", "data": data, "encoder": str(minilm_path), "shown": 1}
  (evaluator,) = evals.build([section])
  result = evaluator(None, None, tokenizer)
  scores = Scorer(str(minilm_path))(WRITTEN, REFERENCES)
  for column, name in enumerate(("precision", "recall", "f1")):
    assert result.metrics[name] == pytest.approx(scores[:, column].mean())
    assert result.intervals[name] == pytest.approx(bootstrap.interval(list(scores[:, column])))
  assert result.metrics["unfinished"] == 0.25 and result.metrics["pairs"] == 4
  assert len(result.samples) == 1 and REFERENCES[0] in result.samples[0]


@pytest.mark.parametrize(
  ("how", "told"),
  [({"layer": 7}, "layer 7 is not one of the 6"), ({"length": 1000}, "not within 2 and")],
)
def test_what_cannot_be_is_told(minilm_path, how, told):
  with pytest.raises(ValueError, match=told):
    Scorer(str(minilm_path), **how)(WRITTEN, REFERENCES)


def test_a_decoder_is_no_encoder(smollm2_path):
  with pytest.raises(ValueError, match="is no encoder"):
    Scorer(str(smollm2_path))
