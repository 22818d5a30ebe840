"""The real command on a toy model, its adapter and a run's directory."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from research import evaluate, models, peft
from research.evals import Result, compare
from research.models import families

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "max_position_embeddings": 256,
  "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0,
  "tie_word_embeddings": True,
}
TEXT = {"name": "text", "path": "text.txt", "cache": "cache"}
CONFIG = """
from configs import base

def get_config():
  config = base.get_config()
  config.model.source = "model"
  config.model.dtype = "float32"
  config.eval.evaluators = (
    {"name": "perplexity", "data": DATA, "length": 32, "context": 16},
    {"name": "verifiable", "data": PROBLEMS, "max_new_tokens": 4, "shown": 1},
  )
  return config
"""
PROBLEMS = {"name": "jsonl", "path": "problems.jsonl", "cache": "cache"}


@pytest.fixture(scope="module")
def world(tmp_path_factory, byte_tokenizer):
  """model/, adapter/, run/, model/ as a run's whole result in whole/, data and a config."""
  root = tmp_path_factory.mktemp("evaluate")
  model = models.build(LLAMA)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  models.save(root / "model", model, params, byte_tokenizer)

  rules = [{"target": ".*q_proj/kernel", "name": "lora", "rank": 2, "alpha": 64}]
  adapters = peft.attach(rules, params, jax.random.key(1))
  adapters = jax.tree.map(lambda leaf: leaf + 0.3, adapters)
  modules = families.find("llama").modules(model.config)
  for directory in (root / "adapter", root / "run" / "adapter"):
    peft.save(directory, adapters, modules)
  changed = jax.tree.map(lambda leaf: leaf * 1.5, params)
  models.save(root / "whole" / "model", model, changed, byte_tokenizer)

  (root / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 5)
  rows = [{"prompt": f"{i} + 1 =", "answer": i + 1, "task": "sum"} for i in range(3)]
  (root / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  config = CONFIG.replace("DATA", repr(TEXT)).replace("PROBLEMS", repr(PROBLEMS))
  (root / "config.py").write_text(config)
  evaluators = [{"name": "perplexity", "data": TEXT, "length": 32, "context": 16}]
  saved = {"model": {"source": "model", "dtype": "float32"}, "eval": {"evaluators": evaluators}}
  for run in ("run", "whole"):
    (root / run / "config.json").write_text(json.dumps(saved))
  return root


@pytest.fixture
def run(world, monkeypatch, capsys):
  """`run(*arguments) -> (code, out, err)`, in the world's directory."""
  monkeypatch.chdir(world)

  def call(*arguments):
    code = evaluate.main(arguments)
    return code, *capsys.readouterr()

  return call


def saved(path):
  report = json.loads(path.read_text())
  return report, [Result.from_json(result) for result in report["results"]]


def test_config_measures_a_base_model(run, world):
  code, out, _ = run("--config=config.py", "--output=base.json")
  assert code == 0
  report, (perplexity, verifiable) = saved(world / "base.json")
  assert report["name"] == "model"
  assert f"{perplexity.metrics['perplexity']:.4f}" in out
  assert "> 0 + 1 =" in out
  assert perplexity.metrics["tokens"] == len((world / "text.txt").read_text())
  # Nothing has been learnt: near a uniform guess among 258 tokens.
  assert perplexity.metrics["nll_per_token"] == pytest.approx(math.log(258), rel=0.05)
  assert verifiable.metrics["problems"] == 3


def test_override_of_the_config(run, world):
  code, *_ = run("--config=config.py", "--config.model.source=whole/model", "--output=w.json")
  assert code == 0
  assert saved(world / "w.json")[0]["name"] == "whole/model"


def test_run_against_its_base_and_against_what_was_saved(run, world):
  run("--run=run", "--compare=base", "--output=first.json")
  run("--model=model", "--dtype=float32", "--config=config.py", "--output=saved.json")
  code, out, _ = run("--run=run", "--compare=saved.json")
  assert code == 0
  first, (ours,) = saved(world / "first.json")
  second, _ = saved(world / "run" / "evaluation.json")  # a run's default
  _, (theirs, _) = saved(world / "saved.json")
  (expected,) = compare(ours, theirs)
  assert expected.difference != 0
  for report in (first, second):
    (found,) = report["differences"]
    assert found["difference"] == pytest.approx(expected.difference, rel=1e-6)
    assert found["interval"] == pytest.approx(expected.interval, rel=1e-4)
  assert f"{expected.difference:+.4f}" in out


def test_what_was_measured_stays_where_it_cannot_be_compared(run, world):
  text = ("--model=model", "--dtype=float32", "--perplexity=text.txt")
  assert run("--run=run", "--output=twice.json")[0] == 0
  code, out, err = run(*text, "--output=measured.json", "--compare=twice.json")
  # Windows of 1024 tokens here, of 32 there.
  assert code == 2 and "items are the same" in err and "saved measured.json" in out
  report, (result,) = saved(world / "measured.json")
  assert report.keys() == {"name", "results", "compared"} and result.metrics["tokens"] > 0
  # An earlier file is read before it is written over.
  code, _, err = run("--run=whole", "--compare=twice.json", "--output=twice.json")
  assert code == 0, err
  report, (ours,) = saved(world / "twice.json")
  assert report["name"] == "whole" and report["compared"]["name"] == "run (twice.json)"
  assert report["differences"][0]["difference"] != 0


def test_what_was_measured_stays_where_a_later_evaluator_fails(run, world):
  row = {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}
  (world / "pairs.jsonl").write_text(json.dumps(row) + "\n")
  config = (world / "config.py").read_text()
  more = {"name": "reference_kl", "length": 32}
  more["data"] = {"name": "jsonl", "path": "pairs.jsonl", "cache": "cache"}
  (world / "three.py").write_text(
    config.replace("  return config", f"  config.eval.evaluators += ({more},)\n  return config")
  )
  # The third evaluator is of models with adapters.
  told = "reference_kl compares with the model without adapters, and it has none"
  code, out, err = run("--config=three.py", "--output=two.json")
  assert code == 2 and err.endswith(f"error: {told}\n")
  report, (perplexity, verifiable) = saved(world / "two.json")
  assert report.keys() == {"name", "results"} and verifiable.metrics["problems"] == 3
  assert f"{perplexity.metrics['perplexity']:.4f}" in out and "saved two.json" in out
  # So is the second model's.
  code, out, err = run(
    "--config=three.py", "--adapter=adapter", "--compare=model", "--output=c.json"
  )
  assert code == 2 and err.endswith(f"error: {told}\n")
  report, ours = saved(world / "c.json")
  theirs = [Result.from_json(result) for result in report["compared"]["results"]]
  assert report.keys() == {"name", "results", "compared"}
  assert [len(ours), theirs] == [3, [perplexity, verifiable]]
  assert out.count("saved c.json") == 2 and f"{perplexity.metrics['perplexity']:.4f}" in out
  # Where nothing was measured, nothing is written over.
  flag = "--config.eval.evaluators=({'name': 'perplexity', 'data': {'name': 'text', 'path': 'x'}},)"
  code, out, err = run("--config=three.py", flag, "--output=c.json")
  assert code == 2 and "x" in err and not out
  assert saved(world / "c.json")[0] == report


def test_plots_of_what_has_tables(run, world):
  section = {"name": "token_calibration", "data": TEXT, "length": 32}
  config = (world / "config.py").read_text()
  more = f"  config.eval.evaluators = (config.eval.evaluators[0], {section})\n  return config"
  (world / "tables.py").write_text(config.replace("  return config", more))
  code, out, err = run("--config=tables.py", "--plots=plots", "--output=tables.json")
  assert code == 0, err
  assert [file.name for file in (world / "plots").iterdir()] == [
    "token_calibration-reliability.png"
  ]
  assert "saved plots/token_calibration-reliability.png" in out
  _, (_, result) = saved(world / "tables.json")
  counts = [row["count"] for row in result.tables["reliability"]]
  assert sum(counts) == result.metrics["tokens"]


def test_adapter_is_the_run(run, world):
  run("--run=run", "--output=run.json")
  arguments = ("--config=config.py", "--adapter=adapter", "--compare=whole")
  code, out, _ = run(*arguments, "--output=adapter.json")
  assert code == 0
  assert "first: adapter\nsecond: whole" in out
  report, (adapted, _) = saved(world / "adapter.json")
  _, (through_run,) = saved(world / "run.json")
  assert adapted.metrics == through_run.metrics
  whole = Result.from_json(report["compared"]["results"][0])
  assert whole.metrics["nll_per_token"] != adapted.metrics["nll_per_token"]


def test_flags_name_what_is_measured(run, world, monkeypatch):
  monkeypatch.setenv("RESEARCH_CACHE", str(world / "home"))
  code, _, err = run(
    "--model=model",
    "--dtype=float32",
    "--perplexity=text.txt",
    "--problems=problems.jsonl",
    "--reasoning-gym=chain_sum",
    "--size=4",
    "--max-new-tokens=3",
    "--output=flags.json",
  )
  assert code == 0, err
  _, results = saved(world / "flags.json")
  assert [(r.name, len(r.records)) for r in results] == [
    ("perplexity", 1),
    ("problems.jsonl", 3),
    ("reasoning_gym", 4),
  ]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("--model=model",), "nothing to measure"),
    (("--model=nowhere/x", "--reasoning-gym=chain_sum"), "no model at 'nowhere/x'"),
    (("--model=model", "--reasoning-gym=chain_sums"), "did you mean 'chain_sum'"),
    (("--run=model",), "is not a run's config"),
    (("--run=adapter",), "adapter is no run"),
    (("--config=config.py", "--compare=base"), "model is the base"),
    (("--config=config.py", "--config.model.sauce=x"), "did you mean 'model.source'"),
    (("--model=model", "--adapter=run", "--config=config.py"), "adapter_config.json"),
    (("--config=config.py", "--compare=run/config.json"), "is not the file of an evaluation"),
  ],
)
def test_mistakes_are_one_line(run, arguments, message):
  code, _, err = run(*arguments)
  assert code == 2
  (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
  assert message in line


@pytest.mark.parametrize(
  "arguments", [(), ("--run=run", "--model=model"), ("--model=model", "--perplexty=x")]
)
def test_wrong_flags_tell_the_usage(run, arguments, capsys):
  with pytest.raises(SystemExit, match="2"):
    run(*arguments)
  assert "usage: python -m research.evaluate" in capsys.readouterr().err
