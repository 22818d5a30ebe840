"""BLEU from counts a pair against sacrebleu's own of the corpus."""

import json

import pytest

from research import evals, generation
from research.evals import pairs

sacrebleu = pytest.importorskip("sacrebleu")

WRITTEN = ["the cat sat on the mat today", "a small house by a river", "", "no word is right here"]
REFERENCES = [
  "the cat sat on a mat today .",
  "a small house by the river",
  "nothing was said",
  "entirely other things were meant",
]


class Words:
  """A token a text."""

  eos_ids = (0,)
  special_tokens = {"bos_token": "a small"}  # with which one of the texts begins

  def encode(self, text, add_special=True):
    assert add_special == (text != REFERENCES[1])
    return [REFERENCES.index(text) + 1]

  def decode(self, tokens):
    return WRITTEN[tokens[0] - 1]


@pytest.fixture
def rows(tmp_path):
  file = tmp_path / "rows.jsonl"
  pairs = [{"prompt": text, "completion": text} for text in REFERENCES]
  file.write_text("\n".join(map(json.dumps, pairs)))
  return {"name": "jsonl", "path": str(file), "cache": str(tmp_path / "cache")}


def test_corpus_bleu(rows, monkeypatch):
  def write(model, variables, prompts, **_):
    return [
      generation.Completion(i, 0, prompt, [0.0], finished=i != 2)
      for i, prompt in enumerate(prompts)
    ]

  monkeypatch.setattr(pairs.generation, "generate", write)
  (evaluator,) = evals.build([{"name": "bleu", "data": rows, "shown": 1}])
  result = evaluator(None, None, Words())
  expected = sacrebleu.corpus_bleu(WRITTEN, [REFERENCES])
  assert result.metrics["bleu"] == pytest.approx(expected.score, abs=1e-9)
  assert result.metrics["length_ratio"] == pytest.approx(expected.sys_len / expected.ref_len)
  assert result.metrics["unfinished"] == 0.25 and result.metrics["pairs"] == 4
  low, high = result.intervals["bleu"]
  assert 0 <= low < expected.score < high <= 100
  assert evals.Result.from_json(json.loads(json.dumps(result.to_json()))) == result
  assert REFERENCES[0] in result.samples[0] and len(result.samples) == 1


def test_rows_without_a_reference(rows, tmp_path):
  (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completions": "b"}')
  (evaluator,) = evals.build([{"name": "bleu", "data": rows}])
  with pytest.raises(
    ValueError, match="row 0 has no text 'completion'; did you mean 'completions'"
  ):
    evaluator(None, None, Words())
