"""The command that writes rows by principles: whole, gone on with, and read by training."""

import json

import jax
import pytest

from research import constitution, models
from research.data import formats, preferences
from research.data.examples import BadRow

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "max_position_embeddings": 1024,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory, ending_tokenizer):
  root = tmp_path_factory.mktemp("constitution")
  model = models.build(LLAMA)
  params = jax.tree.map(lambda x: x * 4, models.initialize(model, jax.random.key(0)))
  models.save(root / "model", model, params, ending_tokenizer)
  rows = [{"prompt": f"q{i}"} for i in range(3)]
  rows.append({"messages": [{"role": "user", "content": "why?"}]})
  (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return root


def _run(world, what, output, *flags):
  rows = ["--input", str(world / "prompts.jsonl"), "--output", str(world / output)]
  how = ["--max-new-tokens=3", "--batch-size=4", "--dtype=float32"]
  code = constitution.main([what, f"--model={world / 'model'}", *rows, *how, *flags])
  file = world / output
  return code, [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_revised_rows_are_supervised_and_go_on(world, byte_tokenizer, capsys):
  code, rows = _run(world, "revise", "revised.jsonl", "--rounds=2")
  assert code == 0 and len(rows) == 4
  kept = [row for row in rows if "dropped" not in row]
  assert 0 < len(kept) < 4
  out = capsys.readouterr().out
  assert "4 rows written; 4 are in" in out
  assert f"{4 - len(kept)} of them have an answer that is empty or was cut off; training" in out
  for row in rows:
    assert len(row["revisions"]) == 3
    if row in kept:
      continue
    with pytest.raises(
      BadRow, match="columns \\['dropped', 'prompt', 'revisions'\\] fit no format"
    ):
      formats.tokenize(row, byte_tokenizer, completion_only=True, words=False)
  for row in kept:
    example = formats.tokenize(row, byte_tokenizer, completion_only=True, words=False)
    assert example.learns
    last = row["revisions"][-1]["answer"]
    told = row["completion"]
    assert (told if isinstance(told, str) else told[0]["content"]) == last
  lines = (world / "revised.jsonl").read_text().splitlines()
  (world / "revised.jsonl").write_text(lines[0] + "\n" + lines[1][:9])
  assert _run(world, "revise", "revised.jsonl", "--rounds=2") == (0, rows)


def test_compared_rows_are_pairs(world, byte_tokenizer, capsys):
  code, rows = _run(world, "compare", "pairs.jsonl", f"--judge={world / 'model'}")
  assert code == 0 and len(rows) == 4
  kept = [row for row in rows if "dropped" not in row]
  assert 0 < len(kept) < 4
  told = f"{4 - len(kept)} of them have two equal answers, or one that is empty or was cut off;"
  assert told in capsys.readouterr().out
  for row in kept:
    example = preferences.tokenize_pair(row, byte_tokenizer)
    assert example.rival is not None and 0.5 <= row["preference"] <= 1


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ('{"question": "a"}', "row 0 is without its columns: no 'prompt' and no 'messages'"),
    ('{"prompt": "a"', "line 1 is not JSON"),
    ("[1]", "line 1 is list, and not an object"),
  ],
)
def test_rows_that_ask_nothing(world, capsys, text, told):
  (world / "bad.jsonl").write_text(text)
  assert _run(world, "revise", "no.jsonl", "--input", str(world / "bad.jsonl"))[0] == 2
  assert told in capsys.readouterr().err


def test_flags_that_cannot_be(world, capsys):
  for what, flag, told in (
    ("revise", "--rounds=0", "are from 1"),
    ("revise", "--judge=x", "--judge is for compare"),
    ("compare", "--rounds=2", "--rounds is for revise"),
  ):
    with pytest.raises(SystemExit):
      _run(world, what, "no.jsonl", flag)
    assert told in capsys.readouterr().err
