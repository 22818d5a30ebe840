"""The real commands on adapters of each task: trained in one run, written with, and their files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft as hf_peft
import pytest
import torch
import transformers

from research import evaluate, generate, models, peft, train
from research import generation as engine
from research.models import families

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 16,
  "intermediate_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 64,
}
CONFIG = """
from configs import base

def task(columns):
  source = {"name": "jsonl", "path": "rows.jsonl", "cache": "cache"}
  return {"name": "templates", "source": source, "columns": columns}

def get_config():
  config = base.get_config()
  config.compilation_cache = "compiled"
  config.directory = "run"
  config.model.source = "model"
  config.model.dtype = "float32"
  config.model.unroll = 1
  config.adapters = (
    {"target": "layers/attention/[qv]_proj/kernel", "name": "lora", "rank": 2, "alpha": 4,
     "each_task": ("down", "up")},
  )
  config.data.train.source = {"name": "mixture", "tasks": ["up", "down"], "sources": [
    task({"prompt": "<up> {n}", "completion": " {above}"}),
    task({"prompt": "<down> {n}", "completion": " {below}"}),
  ]}
  config.data.train.length = 48
  config.data.train.window = 16
  config.data.eval = config.data.train.copy_and_resolve_references()
  config.optimizer.learning_rate = 1e-1
  config.train.steps = 3
  config.train.batch_size = 4
  config.log.tensorboard = False
  config.log.peak_flops = 1e11
  return config
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, byte_tokenizer):
  root = tmp_path_factory.mktemp("each_task")
  model = models.build(LLAMA)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  params = jax.tree.map(lambda x: x * 8, params)  # far from uniform: greedy ties are rare
  models.save(root / "model", model, params, byte_tokenizer)
  rows = [{"n": i, "above": i + 1, "below": i - 1} for i in range(20)]
  (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (root / "config.py").write_text(CONFIG)
  return root


@pytest.fixture(autouse=True)
def here(world, monkeypatch):
  monkeypatch.chdir(world)
  monkeypatch.setenv("RESEARCH_CACHE", str(world / "home"))


@pytest.fixture(scope="module")
def trained(world):
  """Adapters by name, read back from the run's files, with the model and its parameters."""
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(world)
    assert train.main(["--config=config.py"]) == 0
  model, params, tokenizer = models.load(world / "model")
  modules = families.find("llama").modules(model.config)
  named = {
    name: peft.load(world / "run/adapter" / name, params, modules) for name in ("up", "down")
  }
  return model, params, tokenizer, named


def test_a_run_trains_and_exports_each(world, trained):
  model, params, _, named = trained
  lines = [json.loads(line) for line in (world / "run/metrics.jsonl").read_text().splitlines()]
  told = [line for line in lines if "eval/held_out/loss/up" in line]
  for task in ("up", "down"):
    losses = [line[f"eval/held_out/loss/{task}"] for line in told]
    assert losses[-1] < losses[0]
    base = transformers.AutoModelForCausalLM.from_pretrained(world / "model")
    theirs = hf_peft.PeftModel.from_pretrained(base, world / "run/adapter" / task).eval()
    tokens = np.arange(20).reshape(2, 10)
    with torch.no_grad():
      want = theirs(torch.tensor(tokens)).logits.numpy()
    merged = peft.merge(params, named[task])
    got = jax.jit(model.clone(unroll=1).apply)({"params": merged}, tokens)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
  first, second = (np.asarray(next(peft.sites(one))[1].b) for one in named.values())
  assert first.any() and second.any() and (first != second).any()


def _write(model, params, tokenizer, prompt, adapters=None):
  params = peft.merge(params, adapters) if adapters else params
  (found,) = engine.generate(
    model,
    {"params": params},
    [tokenizer.encode(f"user: {prompt}<eos>")],
    max_new_tokens=5,
    eos_ids=tokenizer.eos_ids,
  )
  return tokenizer.decode(found.tokens)


SAME = ("--dtype=float32", "--max-new-tokens=5")
NAMED = ("--model=model", "--adapter=up=run/adapter/up", "--adapter=down=run/adapter/down")


def test_rows_of_a_file_name_theirs(world, trained, capsys):
  model, params, tokenizer, named = trained
  rows = [{"prompt": "hello", "adapter": "up"}, {"prompt": "hello"}, {"prompt": "hello"}]
  rows[2]["adapter"] = "down"
  (world / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  wanted = [_write(model, params, tokenizer, "hello", named.get(r.get("adapter"))) for r in rows]
  assert len(set(wanted)) == 3
  for flags in (NAMED, ("--run=run",)):
    arguments = ("--input=in.jsonl", f"--output=out-{len(flags)}.jsonl", *SAME)
    assert generate.main([*flags, *arguments]) == 0, capsys.readouterr().err
    written = (world / f"out-{len(flags)}.jsonl").read_text().splitlines()
    assert [json.loads(line)["completion"] for line in written] == wanted
  (world / "in.jsonl").write_text('{"prompt": "hello", "adapter": "upp"}\n')
  assert generate.main([*NAMED, "--input=in.jsonl", "--output=no.jsonl", *SAME]) == 2
  told = capsys.readouterr().err
  assert "error: row 0: the bank has no adapter 'upp'; did you mean 'up'" in told


def test_a_prompt_and_a_chat_use_one(world, trained, monkeypatch, capsys):
  model, params, tokenizer, named = trained
  up = _write(model, params, tokenizer, "hello", named["up"])
  assert generate.main([*NAMED, "--use=up", "--prompt=hello", *SAME]) == 0
  assert capsys.readouterr().out == f"{up}\n"
  said = iter(["hello", "/reset", "/adapter", "hello", "/adapter no", "/exit"])
  monkeypatch.setattr("builtins.input", lambda _: next(said))
  assert generate.main([*NAMED, "--use=up", "--chat", *SAME]) == 0
  _, told, *answers = capsys.readouterr().out.splitlines()
  base = _write(model, params, tokenizer, "hello")
  assert told == "/adapter NAME changes who answers: up, down; /adapter alone is the base"
  assert "\n".join(answers) == f"{up}\n{base}\nthe bank has no adapter 'no'; it has up, down"


@pytest.mark.parametrize(
  ("flags", "told"),
  [
    (("--adapter=run/adapter/up", NAMED[1]), "'run/adapter/up' has none"),
    ((NAMED[1], NAMED[1]), "two adapters are named 'up'"),
    ((NAMED[1], "--use=upp"), "the bank has no adapter 'upp'; did you mean 'up'?; it has up"),
    (("--use=up",), "'up' is no adapter here: name them by --adapter NAME=DIR"),
  ],
)
def test_adapters_that_cannot_be_named(trained, flags, told, capsys):
  assert generate.main(["--model=model", *flags, "--prompt=a", *SAME]) == 2
  assert told in capsys.readouterr().err


def test_what_takes_one_adapter_says_so(world, trained, capsys):
  (world / "in.jsonl").write_text('{"prompt": "hello"}\n')
  flags = ["--input=in.jsonl", "--output=no.jsonl", "--continuous", *SAME]
  assert generate.main([*NAMED, *flags]) == 2
  assert "--continuous writes by one adapter" in capsys.readouterr().err
  (world / "named.jsonl").write_text('{"prompt": "hello"}\n{"prompt": "a", "adapter": "up"}\n')
  flags = ["--input=named.jsonl", "--output=no.jsonl", *SAME]
  assert generate.main(["--model=model", "--adapter=run/adapter/up", *flags]) == 2
  assert "row 1 names the adapter 'up': give it as --adapter up=DIR" in capsys.readouterr().err
  assert evaluate.main(["--run=run", "--perplexity=config.py"]) == 2
  assert "run has several adapters, down, up: give one" in capsys.readouterr().err


def test_names_are_the_tasks_of_the_mixture(world, capsys):
  text = CONFIG.replace('("down", "up")', '("up", "dwn")')
  (world / "wrong.py").write_text(text)
  assert train.main(["--config=wrong.py", "--config.directory=wrong"]) == 2
  assert (
    "the task 'down' has no adapter in each_task; did you mean 'dwn'" in capsys.readouterr().err
  )
  (world / "wrong.py").write_text(CONFIG.replace('"tasks": ["up", "down"], ', ""))
  assert train.main(["--config=wrong.py", "--config.directory=wrong"]) == 2
  assert "need a mixture whose tasks are named: down, up" in capsys.readouterr().err
