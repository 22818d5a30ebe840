"""The real command: a file curated step by step, stopped, gone on with, and told again."""

import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import curate as example
from research import curate, curation, models
from research.core import config as config_lib
from research.curation.perplexity import Perplexity
from research.curation.step import Ledger, Rows
from research.data import sources, texts, vocabulary

LLAMA = {
  "model_type": "llama",
  "vocab_size": 288,
  "hidden_size": 16,
  "intermediate_size": 16,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "max_position_embeddings": 64,
}
CONFIG = """
from configs import base_curate

def get_config():
  config = base_curate.get_config()
  config.compilation_cache = "off"
  config.source = {{"name": "jsonl", "path": "{root}/rows.jsonl"}}
  config.steps = (
    {{"name": "exact_duplicates"}},
    {{"name": "personal_data", "kinds": ("email",)}},
    {{"name": "perplexity", "model": "{root}/model", "length": 12, "batch_size": 2,
      "dtype": "float32"}},
    {{"name": "column", "column": "perplexity", "percentiles": (0, 80)}},
  )
  config.output = "{root}/out/kept.jsonl"
  return config
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A folder with rows, a model and a config."""
  root = tmp_path_factory.mktemp("curate")
  rng = np.random.default_rng(0)
  words = [" ".join(rng.choice(["one", "two", "three", "four"], n)) for n in range(3, 39)]
  rows = [{"text": text, "id": number} for number, text in enumerate(words)]
  rows[5] = {"prompt": f"Ask a.b@example.org for {words[5]}", "completion": "Yes"}
  lines = [json.dumps(row) for row in rows]
  lines[7:7] = [json.dumps({"text": words[3].upper()}), '{"id": 3}', "{not json"]
  (root / "rows.jsonl").write_text("\n".join(lines))
  model = models.build(LLAMA)
  params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  # Far from even, so that perplexities differ.
  params = jax.tree.map(lambda leaf: 3 * leaf, params)
  tokenizer = vocabulary.train(words * 3, size=262, kind="bpe", sentinels=2)
  models.save(root / "model", model, params, tokenizer)
  (root / "config.py").write_text(CONFIG.format(root=root))
  return root


@pytest.fixture
def run(root, capsys, monkeypatch):
  monkeypatch.setenv("RESEARCH_CACHE", str(root / "cache"))

  def call(*arguments):
    code = curate.main([f"--config={root}/config.py", *arguments])
    return code, *capsys.readouterr()

  return call


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command(run, root):
  code, out, _ = run()
  assert code == 0
  kept = read(root / "out/kept.jsonl")
  report = json.loads((root / "out/kept.report.json").read_text())
  assert report["rows"] == {"in": 38, "out": len(kept)} and len(kept) == 29
  assert [step["out"] for step in report["steps"]] == [37, 36, 36, 36, 29]
  assert report["lost in preparation"][0]["reason"] == "not JSON"
  assert re.search(r"\nreadable +without a text +1 +2\.6% +row 8: ", out)
  assert re.search(r"\nexact_duplicates +same text as a row before +1 +2\.7% +row 7: the t", out)
  assert re.search(r"\ncolumn +perplexity above [\d.]+ +7 ", out)
  assert out.endswith(f"saved {root}/out/kept.jsonl: 29 of 38 rows\n")
  masked = [row for row in kept if "prompt" in row]
  assert all(row["prompt"].startswith("Ask <email> for") for row in masked)
  # What is told is also read: the likeliest are left, by numbers that a plain pass finds.
  model, params, tokenizer = models.load(root / "model", dtype=jnp.float32)
  for row in kept[::5]:
    ids = [*tokenizer.eos_ids, *tokenizer.encode(texts.joined(row), add_special=False)[:12]]
    logits = model.apply({"params": params}, jnp.asarray([ids]))[0]
    losses = -jax.nn.log_softmax(logits)[np.arange(len(ids) - 1), np.asarray(ids[1:])]
    np.testing.assert_allclose(row["perplexity"], np.exp(losses.mean()), rtol=1e-4)
  limit = float(re.search(r"perplexity above ([\d.]+)", out)[1])
  assert max(row["perplexity"] for row in kept) <= limit * 1.001
  # A second time nothing is done, and the same told.
  assert run() == (0, out, "")
  source = {"name": "jsonl", "path": str(root / "out/kept.jsonl")}
  assert sources.build(source)[0] == kept[0]


def test_other_last_steps_do_not_do_the_first_ones_again(run, root, monkeypatch):
  code, *_ = run(f"--config.output={root}/again/kept.jsonl")
  assert code == 0

  def judge(self, rows, ledger):
    raise AssertionError("done already")

  monkeypatch.setattr(Perplexity, "judge", judge)
  (root / "again/kept.jsonl").unlink()
  steps = (root / "config.py").read_text()
  (root / "config.py").write_text(steps.replace("(0, 80)", "(0, 50)"))
  code, out, _ = run(f"--config.output={root}/again/kept.jsonl")
  (root / "config.py").write_text(steps)
  assert code == 0 and len(read(root / "again/kept.jsonl")) == 18


def test_perplexities_go_on_behind_what_is_done(root, tmp_path, monkeypatch):
  monkeypatch.setenv("RESEARCH_CACHE", str(root / "cache"))
  source = sources.build({"name": "jsonl", "path": str(root / "rows.jsonl")})
  rows = Rows(source, np.array([i for i in range(38) if i != 8]))
  step = Perplexity(str(root / "model"), length=12, batch_size=2, dtype="float32")
  whole = Ledger(rows, tmp_path)
  step.judge(rows, whole)
  file = tmp_path / "perplexities.f64"
  content = file.read_bytes()
  file.write_bytes(content[: 8 * 20 + 3])  # a number was cut
  again = Ledger(rows, tmp_path)
  step.judge(rows, again)
  np.testing.assert_allclose(again.columns["perplexity"], whole.columns["perplexity"], rtol=1e-5)
  assert file.read_bytes()[: 8 * 20] == content[: 8 * 20] and len(file.read_bytes()) == 8 * 37


def test_a_model_is_known_by_its_files(tmp_path):
  for name, content in (("config.json", "{}"), ("model.safetensors", "weights")):
    (tmp_path / name).write_text(content)
  step = Perplexity(str(tmp_path))
  first = step.reads()
  os.utime(tmp_path / "config.json", (0, 0))
  assert step.reads() == first
  (tmp_path / "model.safetensors").write_text("WEIGHTS")
  assert step.reads() != first
  (tmp_path / "model.gguf").write_text("weights")
  assert Perplexity(str(tmp_path / "model.gguf")).reads()


def test_a_report_of_what_takes_all(root, tmp_path, monkeypatch):
  monkeypatch.setenv("RESEARCH_CACHE", str(root / "cache"))
  source = sources.build({"name": "jsonl", "path": str(root / "rows.jsonl")})
  steps = [
    ("length", curation.STEPS["length"](minimum=10**6), {}),
    ("perplexity", Perplexity(str(root / "model")), {}),
    ("column", curation.STEPS["column"]("perplexity", percentiles=(0, 80)), {}),
  ]
  report = curation.curate(source, steps, tmp_path / "rows.jsonl")
  assert report["steps"][1]["rules"]["too short"]["rows"] == 37
  assert report["rows"] == {"in": 38, "out": 0} and (tmp_path / "rows.jsonl").read_text() == ""


@pytest.mark.parametrize(
  "flag, told",
  [
    ("--config.output=", "config.output is empty"),
    ("--config.output=rows.txt", "rows are written as JSON lines, to a file NAME.jsonl"),
    ("--config.outputs=a", "did you mean 'output'"),
    ('--config.steps=({"name": "exact"},)', "there are .*exact_duplicates"),
    ('--config.steps=({"name": "length", "minumum": 3},)', "did you mean 'minimum'"),
    ('--config.steps=({"name": "column", "column": "score"},)', "no number|without a number"),
    (
      '--config.steps=({"name": "classifier", "model": "none", "label": "x", "most": 0.5},)',
      r"config\.steps\[0\]: no model is named 'none'",
    ),
    ('--config.source.path="none.jsonl"', "config.source: no data file at"),
  ],
)
def test_what_cannot_be_is_one_line(run, root, flag, told):
  flags = [flag] if "output" in flag else [flag, f"--config.output={root}/never.jsonl"]
  code, _, error = run(*flags)
  assert code == 2 and error.count("\n") == 1 and error.startswith("error: ")
  assert re.search(told, error), error


def test_other_rows_are_not_written_over(run, root):
  (root / "mine.jsonl").write_text("{}\n")
  code, _, error = run(f"--config.output={root}/mine.jsonl")
  assert code == 2 and "is of another source or other steps; remove it" in error
  assert (root / "mine.jsonl").read_text() == "{}\n"


def test_rows_of_a_mixture_are_told_by_their_part(root, tmp_path, monkeypatch):
  monkeypatch.setenv("RESEARCH_CACHE", str(root / "cache"))
  part = {"name": "jsonl", "path": str(root / "rows.jsonl")}
  source = sources.build({"name": "mixture", "sources": [part, part]})
  step = curation.STEPS["exact_duplicates"]()
  report = curation.curate(source, [("exact_duplicates", step, {})], tmp_path / "rows.jsonl")
  examples = report["steps"][1]["rules"]["same text as a row before"]["examples"]
  told = [(example["row"], example["detail"]) for example in examples]
  assert told[:3] == [
    ("0:7", "the text of row 0:3"),
    ("1:0", "the text of row 0:0"),
    ("1:1", "the text of row 0:1"),
  ]
  assert report["rows"] == {"in": 76, "out": 36}


def test_the_config_that_comes_along_can_be():
  config = config_lib.Config(example.get_config())
  steps = [config_lib.call(curation.STEPS, section) for section in config.steps]
  assert len(steps) == 6 and steps[-1].column == steps[-2].column


def test_steps_have_their_names_and_say_what_they_are():
  for name, step in curation.STEPS.items():
    assert step.__doc__ and step.judge is not curation.Step.judge, name
