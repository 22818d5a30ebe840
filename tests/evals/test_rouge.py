"""ROUGE of a corpus against the package's own scores."""

import sys

import pytest

from research import evals
from research.evals import bootstrap

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")

WRITTEN = ["the cats sat on the mat", "a dog runs in the park", "", "nothing alike"]
REFERENCES = ["the cat is sitting on the mat", "dogs run in parks", "rain", "quite other words"]


@pytest.mark.parametrize("stemmer", [True, False])
def test_corpus(writing, tokenizer, stemmer):
  data = writing(WRITTEN, REFERENCES)
  section = {"name": "rouge", "data": data, "stemmer": stemmer, "shown": 1}
  (evaluator,) = evals.build([section])
  result = evaluator(None, None, tokenizer)
  scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemmer)
  for ours, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
    scores = [
      scorer.score(reference, text)[theirs].fmeasure
      for text, reference in zip(WRITTEN, REFERENCES, strict=True)
    ]
    assert 0 < sum(scores) < 4
    assert result.metrics[ours] == pytest.approx(sum(scores) / 4, abs=1e-12)
    assert result.intervals[ours] == pytest.approx(bootstrap.interval(scores))
  assert result.metrics["unfinished"] == 0.25 and result.metrics["pairs"] == 4
  assert len(result.samples) == 1 and REFERENCES[0] in result.samples[0]


def test_without_the_package(monkeypatch, tokenizer):
  monkeypatch.setitem(sys.modules, "rouge_score", None)
  (evaluator,) = evals.build([{"name": "rouge", "data": {}}])
  with pytest.raises(ValueError, match=r"rouge needs rouge-score .*research\[summaries\]"):
    evaluator(None, None, tokenizer)
