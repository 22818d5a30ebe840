"""The real command on a toy model: a prompt, a chat, a file that is gone on with."""

import json
import runpy

import jax
import jax.numpy as jnp
import pytest

from research import generate, models
from research import generation as engine

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 512,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory, byte_tokenizer):
  root = tmp_path_factory.mktemp("generate")
  model = models.build(LLAMA)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  params = jax.tree.map(lambda x: x * 8, params)  # far from uniform: greedy ties are rare
  models.save(root, model, params, byte_tokenizer)
  return root


@pytest.fixture
def run(directory, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))

  def call(*arguments):
    code = generate.main(
      [f"--model={directory}", "--dtype=float32", "--max-new-tokens=6", *arguments]
    )
    return code, *capsys.readouterr()

  return call


def _expected(directory, prompt, text=False):
  """The greedy continuation by the library."""
  model, params, tokenizer = models.load(directory)
  if not text:
    prompt = f"user: {prompt}<eos>"
  (found,) = engine.generate(
    model,
    {"params": params},
    [tokenizer.encode(prompt)],
    max_new_tokens=6,
    eos_ids=tokenizer.eos_ids,
  )
  return tokenizer.decode(found.tokens)


def test_a_prompt_is_a_message_or_a_text(run, directory):
  code, out, _ = run("--prompt=hello")
  assert code == 0 and out == _expected(directory, "hello") + "\n"
  _, out, _ = run("--prompt=hello", "--text")
  assert out == _expected(directory, "hello", text=True) + "\n"


def test_samples_and_log_probs(run):
  arguments = ("--prompt=a", "--samples=2", "--temperature=1", "--log-probs", "--seed=3")
  code, out, _ = run(*arguments)
  assert code == 0 and out.count("---") == 2 and out.count("log-probabilities: [-") == 2
  assert run(*arguments)[1] == out
  assert run(*arguments[:-1], "--seed=4")[1] != out


def test_penalties_change_what_is_written(run):
  _, plain, _ = run("--prompt=a")
  code, out, _ = run("--prompt=a", "--repetition-penalty=1.1", "--presence-penalty=-1000")
  assert code == 0 and out != plain
  assert run("--prompt=a", "--temperature=9", "--min-p=1", "--typical-p=0.9")[1] == plain


def test_stop_strings_end_a_prompt_and_a_file(run, directory, tmp_path):
  whole = _expected(directory, "hello")
  stop = next(letter for letter in whole[1:] if letter.isascii())
  expected = whole[: whole.index(stop)]
  assert run("--prompt=hello", "--stop=never", f"--stop={stop}")[1] == expected + "\n"
  source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  source.write_text('{"prompt": "hello"}\n')
  assert run(f"--input={source}", f"--output={target}", f"--stop={stop}")[0] == 0
  assert json.loads(target.read_text())["completion"] == expected


def test_choices_and_scores(run, directory, tmp_path):
  model, params, tokenizer = models.load(directory)
  prompt = tokenizer.encode("user: hello<eos>")
  texts = ["a", "bcd"]
  choices = [tokenizer.encode(text) for text in texts]
  scores = engine.score(model, {"params": params}, [prompt] * 2, choices)
  flags = [f"--choice={text}" for text in texts]
  for by in ("sum", "mean"):
    (found,) = engine.choose(model, {"params": params}, [prompt], [choices], by=by)
    assert run("--prompt=hello", *flags, f"--choose-by={by}")[1] == texts[found.best] + "\n"
  source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  rows = [{"prompt": "hello", "completion": text} for text in texts]
  source.write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert run(f"--input={source}", f"--output={target}", "--score")[0] == 0
  for row, line, log_probs in zip(rows, target.read_text().splitlines(), scores, strict=True):
    assert json.loads(line) == row | {"log_probs": pytest.approx(log_probs, abs=1e-4)}


def test_beams(run, directory):
  model, params, tokenizer = models.load(directory)
  found = engine.beam_search(
    model,
    {"params": params},
    [tokenizer.encode("user: hello<eos>")],
    num_beams=3,
    length_penalty=0.5,
    early_stopping="never",
    max_new_tokens=6,
    eos_ids=tokenizer.eos_ids,
    samples=2,
  )
  flags = ("--beams=3", "--length-penalty=0.5", "--early-stopping=never", "--samples=2")
  texts = [tokenizer.decode(completion.tokens) for completion in found]
  assert run("--prompt=hello", *flags)[1] == f"--- 1\n{texts[0]}\n--- 2\n{texts[1]}\n"


def test_methods_that_find_what_plain_generation_finds(run, directory, tmp_path):
  """Contrastive search without its penalty, a draft of a layer, rows that are refilled."""
  expected = _expected(directory, "hello")
  assert run("--prompt=hello", "--penalty-alpha=0", "--top-k=3")[1] == expected + "\n"
  for flags in (("--draft-layers=0", "--draft-tokens=2"), (f"--draft={directory}",)):
    assert run("--prompt=hello", *flags)[1] == expected + "\n"
  source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  words = ["hello", "one", "two"]
  source.write_text("".join(json.dumps({"prompt": word}) + "\n" for word in words))
  flags = (f"--input={source}", f"--output={target}", "--continuous", "--batch-size=2")
  assert run(*flags)[0] == 0
  found = [json.loads(line)["completion"] for line in target.read_text().splitlines()]
  assert found == [_expected(directory, word) for word in words]


@pytest.mark.parametrize("flags", [(), ("--draft-layers=0-1",), ("--continuous",)])
def test_benchmark(run, tmp_path, flags):
  target = tmp_path / "new" / "speed.json"
  code, out, _ = run(
    "--benchmark", "--batch-size=2", "--prompt-tokens=5", "--requests=4", f"--output={target}",
    *flags,
  )  # fmt: skip
  assert code == 0 and "time between tokens, p99" in out
  told = json.loads(target.read_text())
  assert (told["batch_size"], told["prompt_tokens"], told["requests"]) == (2, 5, 4)
  assert told["cache_bytes_per_token"] == 2 * 2 * 16 * 4 * (
    2 if "--draft-layers=0-1" in flags else 1
  )
  assert told["tokens_per_second"] >= told["requests_per_second"] > 0
  assert 0 < told["time_to_first_token"] < 60 and told["peak_bytes"] > 1e8
  gaps = told["between_tokens"]
  assert 0 <= gaps["median"] <= gaps["p95"] <= gaps["p99"]
  if flags == ("--draft-layers=0-1",):  # all layers: the draft is the model
    assert told["acceptance"] == 1 and told["tokens_per_pass"] == 5


def test_file_is_filled_and_gone_on_with(run, directory, tmp_path):
  rows = [{"prompt": "one", "id": 1}, {"messages": [{"role": "user", "content": "two"}]}]
  rows += [{"prompt": [{"role": "user", "content": "three"}]}]
  source, target = tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl"
  source.write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert run(f"--input={source}", f"--output={target}")[0] == 0
  whole = target.read_text()
  filled = [json.loads(line) for line in whole.splitlines()]
  words = ("one", "two", "three")
  assert filled == [
    row | {"completion": _expected(directory, word)} for row, word in zip(rows, words, strict=True)
  ]
  # As a process killed within the second line leaves it.
  target.write_text(whole[: whole.index("\n") + 10])
  assert run(f"--input={source}", f"--output={target}")[0] == 0
  assert target.read_text() == whole


def test_chat_remembers_and_resets(run, directory, monkeypatch):
  said = iter(["hello", "/reset", "hello", "", "/exit"])
  monkeypatch.setattr("builtins.input", lambda _: next(said))
  code, out, _ = run("--chat")
  answer = _expected(directory, "hello")
  assert code == 0 and out.count(answer) == 2
  asked = iter(["hello", "again"])

  def end_of_file(_):
    try:
      return next(asked)
    except StopIteration:
      raise EOFError from None

  monkeypatch.setattr("builtins.input", end_of_file)
  code, out, _ = run("--chat")
  followed = _expected(directory, f"hello<eos>assistant: {answer}<eos>user: again")
  assert code == 0 and followed in out


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--prompt=x", "--top-p=0"], "top_p"),
    (["--prompt=x", "--choice="], "completion 0 is empty"),
    (["--prompt=x", "--beams=0"], "num_beams is 0"),
    (["--prompt=x", "--beams=2", "--samples=3"], "samples is 3, more than the 2 of num_beams"),
    (["--prompt=x", "--beams=2", "--temperature=1"], "beams are searched, not drawn"),
    (["--prompt=x", "--stop="], "a stop string is empty"),
    (["--prompt=x", "--min-p=2"], "min_p is 2.0"),
    (["--prompt=x", "--typical-p=0"], "typical_p is 0.0"),
    (["--prompt=x", "--repetition-penalty=0"], "repetition_penalty is 0.0"),
    (["--prompt=x", "--presence-penalty=nan"], "presence_penalty is nan"),
    (["--prompt=x", "--penalty-alpha=2", "--top-k=2"], "penalty_alpha is 2.0"),
    (["--prompt=x", "--penalty-alpha=0.5", "--top-k=2", "--temperature=1"], "draws nothing"),
    (["--prompt=x", "--draft-layers=7"], "the model has 0 to 1"),
    (["--benchmark", "--max-new-tokens=600"], "exceeds the model's 512 positions"),
    (["--input=missing.jsonl", "--output=out.jsonl"], "missing.jsonl"),
  ],
)
def test_mistakes_are_one_line(run, arguments, message):
  code, _, err = run(*arguments)
  assert code == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--prompt=x", "--chat"], "one of --prompt, --chat, --input and --benchmark"),
    (["--prompt=x", "--beams=2", "--draft=y"], "--beams and --draft are two methods"),
    (["--prompt=x", "--draft=y", "--draft-layers=1"], "--draft is a model of its own"),
    (["--prompt=x", "--draft-layers=1-x"], "'1-x' is no list of numbers"),
    (["--prompt=x", "--draft-tokens=2"], "--draft-tokens needs --draft"),
    (["--prompt=x", "--penalty-alpha=0.5"], "--penalty-alpha needs --top-k"),
    (["--prompt=x", "--continuous"], "--continuous is for many prompts"),
    (["--chat", "--draft=y"], "--draft takes no --chat"),
    (["--benchmark", "--beams=2"], "--benchmark takes no --beams"),
    (["--benchmark", "--stop=x"], "--benchmark takes no --stop"),
    (["--input=x"], "--input and --output go together"),
    (["--prompt=x", "--run=y"], "one of --model and --run"),
    (["--prompt=x", "--choice=y", "--samples=2"], "--choice takes no --chat, --samples or --stop"),
    (["--prompt=x", "--score"], "--score takes --input"),
    (["--chat", "--beams=2"], "--beams takes no --chat"),
    (["--chat", "--cache=int4"], "--cache takes no --chat"),
    (["--prompt=x", "--cache=int4", "--beams=2"], "--beams takes no --cache"),
    (["--chat", "--samples=2"], "--chat takes no --samples"),
  ],
)
def test_flags_that_contradict(run, arguments, message, capsys):
  with pytest.raises(SystemExit):
    run(*arguments)
  assert message in capsys.readouterr().err


def test_a_cache_in_few_bits(run):
  """Within the window of recent tokens nothing is rounded."""
  assert run("--prompt=hello", "--cache=int4") == run("--prompt=hello")


def test_the_package_is_the_command(monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["generate", "--prompt=x"])
  with pytest.raises(SystemExit) as end:
    runpy.run_module("research.generate", run_name="__main__")
  assert end.value.code == 2 and "give one of --model and --run" in capsys.readouterr().err
