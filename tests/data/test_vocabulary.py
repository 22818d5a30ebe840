"""Vocabularies learnt from text: every text back, and T5's conventions."""

import json
from pathlib import Path

import pytest
import transformers

from research import prepare
from research.data import corruption, vocabulary
from research.data.tokenizer import Tokenizer

TEXTS = (Path(__file__).parents[2] / "docs/architecture.md").read_text().split("\n\n")
TEXT = "The loop of tokens is compiled once."


@pytest.mark.parametrize("kind", vocabulary.KINDS)
def test_conventions(kind, tmp_path):
  size = 300
  tokenizer = vocabulary.train(TEXTS, size=size, kind=kind, sentinels=5)
  assert tokenizer.vocab_size == size
  assert (tokenizer.pad_id, tokenizer.eos_ids) == (0, (1,))
  assert corruption.sentinel_ids(tokenizer).tolist() == list(range(size - 1, size - 6, -1))
  ids = tokenizer.encode(TEXT)
  assert ids[-1] == 1 and tokenizer.decode(ids) == TEXT
  tokenizer.save(tmp_path)
  assert Tokenizer.from_directory(tmp_path).encode(TEXT) == ids
  assert transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"] == ids


def test_what_cannot_be():
  with pytest.raises(ValueError, match="did you mean 'unigram'"):
    vocabulary.train(TEXTS, size=90, kind="unigrams")
  with pytest.raises(ValueError, match="a smaller size, or more texts"):
    vocabulary.train(["ab"], size=90, kind="unigram", sentinels=0)


def test_the_command(tmp_path, capsys):
  rows = tmp_path / "rows.jsonl"
  rows.write_text("\n".join(json.dumps({"prompt": text, "completion": "yes"}) for text in TEXTS))
  directory = tmp_path / "tokenizer"
  flags = [f"--path={rows}", f"--cache={tmp_path}", f"--tokenizer={directory}", "--sentinels=4"]
  assert prepare.main([*flags, "--vocab-size=250"]) == 0
  assert "250 tokens" in capsys.readouterr().out
  assert Tokenizer.from_directory(directory).vocab_size == 250
  assert prepare.main([*flags, "--vocab-size=80000"]) == 1
  assert "a smaller size, or more texts" in capsys.readouterr().err
