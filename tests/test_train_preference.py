"""The real command on preferences, with each kind of reference, killed and resumed to the bit."""

import itertools
import json
import signal

import jax
import numpy as np
import pytest

from configs import base
from research import models, peft
from research.core import tree
from research.core.config import Config, ConfigError
from research.data import pipeline
from research.loop import learner, problem, references, run
from research.loop.interrupt import Interrupted
from research.models import families

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 64,
}
LORA = ({"target": "layers/attention/._proj/kernel", "name": "lora", "rank": 2},)
NF4 = ({"target": "layers/.*_proj/kernel", "kind": "nf4", "group": 16},)
STEPS = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory, byte_tokenizer):
  root = tmp_path_factory.mktemp("preferences")
  model = models.build(LLAMA)
  models.save(root / "model", model, models.initialize(model, jax.random.key(0)), byte_tokenizer)
  rng = np.random.default_rng(0)
  word = lambda: "".join(rng.choice(list("abcdef"), rng.integers(1, 7)))  # noqa: E731
  pairs = [{"prompt": word(), "chosen": " x" + word(), "rejected": " y"} for _ in range(10)]
  pairs.append({"prompt": "a", "chosen": "b", "rejected": "b"})
  judged = [
    {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
    for row in pairs[:10]
    for name in ("chosen", "rejected")
  ]
  for name, rows in (("pairs", pairs), ("judged", judged)):
    (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return root


@pytest.fixture(autouse=True)
def here(world, monkeypatch):
  monkeypatch.chdir(world)
  monkeypatch.setenv("RESEARCH_CACHE", str(world / "home"))


def _config(directory, objective, rows="pairs", **changes):
  config = base.get_config()
  config.compilation_cache = "compiled"
  config.directory = directory
  config.model.source = "model"
  config.model.dtype = "float32"
  config.model.unroll = 1
  config.adapters = LORA
  config.objective = objective
  config.data.train.source = {"name": "jsonl", "path": f"{rows}.jsonl", "cache": "cache"}
  config.data.train.length = 24
  config.data.train.packing = "none"
  config.optimizer.learning_rate = 1e-2
  config.optimizer.schedule = {"name": "constant"}
  config.train.steps = STEPS
  config.train.batch_size = 4
  config.checkpoint.every_steps = 1
  config.log.tensorboard = False
  config.log.peak_flops = 1e11
  with config.unlocked():
    for key, value in changes.items():
      config[key] = value
  return Config(config.to_dict())


def _dpo(reference, **loss):
  loss = loss or {"name": "sigmoid", "beta": 0.5}
  return {"name": "preference", "loss": loss, "reference": reference}


def _lines(directory, name="loss"):
  text = (directory / "metrics.jsonl").read_text()
  return [line for line in map(json.loads, text.splitlines()) if name in line]


class _Stops:
  """A problem whose batches end a run by a signal's exception after so many."""

  def __init__(self, after):
    self.after = after

  def __call__(self, config):
    found = problem.assemble(config)
    batches, left = found.batches, self.after

    class Batches:
      def __getattr__(self, name):
        return getattr(batches, name)

      def __next__(self):
        nonlocal left
        if not left:
          raise Interrupted(signal.SIGTERM)
        left -= 1
        return next(batches)

    found.batches = Batches()
    return found


REFERENCES = {
  "base": (_dpo("base"), {}),
  "copy": (_dpo("copy"), {}),
  "kept": (_dpo("kept"), {}),
  "none": (_dpo(None, name="simpo"), {}),
  "kto": ({"name": "kto", "beta": 0.5}, {"rows": "judged"}),
  "quantized": (_dpo("base"), {"quantize": NF4}),
  "full copy": (_dpo("copy"), {"adapters": (), "trainable": ("all",)}),
}
WHOLE = ("none", "quantized", "full copy")  # which are not killed: the others tell of that


@pytest.fixture(scope="module")
def done(world):
  """What the run of a name left: its results and its steps' lines. It runs when first asked."""
  found = {}

  def ask(name):
    if name not in found:
      objective, changes = REFERENCES[name]
      results = run.run(_config(name, objective, **changes))
      found[name] = results, _lines(world / name)
    return found[name]

  return ask


def _result(directory):
  """The files that a run leaves, by their names."""
  found = [*directory.glob("adapter/*.safetensors"), *directory.glob("model/*.safetensors")]
  return {file.name: file.read_bytes() for file in found}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_run_learns_and_goes_on_to_the_same_bits(world, done, name):
  objective, changes = REFERENCES[name]
  results, steps = done(name)
  if name not in ("none", "kto"):
    np.testing.assert_allclose(steps[0]["loss"], np.log(2), rtol=1e-5)
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
  if name == "kto":  # whose loss depends on which answers a batch has
    np.testing.assert_allclose([steps[0]["loss"], steps[0]["kl"]], [0.5, 0], atol=1e-5)
  else:
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["rewards/margins"] > steps[0]["rewards/margins"]
  base_parameters = tree.count(models.load("model")[1])
  beside = results["trainable_parameters"] if changes.get("adapters", LORA) else 0
  assert results["parameters"] >= base_parameters + beside  # LoRA's scales are constant
  assert results["parameters"] < 1.1 * (base_parameters + beside)
  if name in WHOLE:
    return
  broken = _config(f"{name} broken", objective, **changes)
  with pytest.raises(Interrupted):
    run.run(broken, assemble=_Stops(2))
  run.run(broken)
  assert _result(world / f"{name} broken") == _result(world / name) != {}
  again = _lines(world / f"{name} broken")
  assert [line["loss"] for line in again] == [line["loss"] for line in steps]


def test_references_agree(done):
  """A copy of the model, what was kept of it, and it without the adapter are the same."""
  for name in ("copy", "kept"):
    losses = [[line["loss"] for line in done(each)[1]] for each in (name, "base")]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_accumulation_takes_whole_pairs(world, done):
  # A pair's loss is of its own, so that slices change nothing.
  values = _config("sliced", _dpo("base")).to_dict()
  values["train"] |= {"steps": 1, "accumulate_steps": 2}
  run.run(Config(values))
  (sliced,) = _lines(world / "sliced")
  for key in ("loss", "gradient_norm", "logps/chosen", "rewards/accuracies"):
    np.testing.assert_allclose(sliced[key], done("base")[1][0][key], rtol=1e-5)


def test_held_out_pairs_are_measured_and_references_kept_for_them_too(world):
  config = _config("held out", _dpo("kept"))
  section = {**config.data.train.to_dict()}
  values = config.to_dict()
  values["data"]["eval"] = section
  values["train"]["steps"] = 2
  results = run.run(Config(values))
  before, after = results["evaluations"]
  assert before["eval/held_out/rewards/margins"] == pytest.approx(0, abs=1e-5)
  assert after["eval/held_out/rewards/accuracies"] > 0.5


def test_what_was_kept_is_not_computed_again(world, monkeypatch):
  config = _config("kept again", _dpo("kept"))
  problem.assemble(config)
  monkeypatch.setattr(references, "_save", None)  # which would fail
  batch = next(problem.assemble(config).batches)
  assert batch["reference"].shape == batch["row"].shape == (8,)
  assert np.all(batch["reference"] < 0)
  with pytest.raises(ConfigError, match="not callable"):  # other settings are another file
    problem.assemble(_config("kept more", {**_dpo("kept"), "ld_alpha": 0.5}))


def test_a_pass_that_is_killed_goes_on_to_the_same_table(world, monkeypatch):
  config = _config("killed pass", _dpo("kept"))
  trained = learner.build(config)
  section = {"batch_size": 2, "start_id": None, "virtual_tokens": 0, "answers": "pairs"}
  batches = pipeline.eval_batches(config.data.train, trained.tokenizer, **section)

  class Killed:
    rows, settings = batches.rows, batches.settings

    def __iter__(self):
      yield from itertools.islice(batches, 3)
      raise KeyboardInterrupt

  monkeypatch.setattr(references, "_SAVED_EVERY", 2)
  monkeypatch.setenv("RESEARCH_CACHE", str(world / "whole"))
  whole = references.keep(trained, batches, None)
  assert np.isnan(whole).any(axis=1).tolist() == [False] * 10 + [True]  # whose answers are equal
  monkeypatch.setenv("RESEARCH_CACHE", str(world / "killed"))
  with pytest.raises(KeyboardInterrupt):
    references.keep(trained, Killed(), None)
  (file,) = (world / "killed/references").iterdir()
  with np.load(file) as saved:
    table, done = saved["table"], int(saved["done"])
  known = ~np.isnan(table)
  assert done == 2 and known.sum() == 8
  # A mark on what is there: it stays, so that none of it was computed again.
  references._save(file, table + 1, done, False)
  went_on = references.keep(trained, batches, None)
  np.testing.assert_allclose(went_on, np.where(known, whole + 1, whole), rtol=1e-6)


def test_the_adapter_is_peft_s(world, done):
  done("base")
  model, params, _ = models.load("model")
  modules = families.find("llama").modules(model.config)
  adapters = peft.load(world / "base/adapter", params, modules)
  assert any(np.any(node.b) for _, node in peft.sites(adapters))


@pytest.mark.parametrize(
  ("objective", "changes", "message"),
  [
    (_dpo("base"), {"adapters": (), "trainable": ("all",)}, "trains; take 'copy' or 'kept'"),
    (
      _dpo("base"),
      {"adapters": ({**LORA[0], "start": "pissa"},)},
      "began as a part that was taken out of it .*; take 'copy' or 'kept'",
    ),
    (
      _dpo("base"),
      {"adapters": ({"name": "prompt", "tokens": 2},)},
      "put virtual tokens in rows, which it cannot read",
    ),
    ({"name": "kto", "reference": "kept"}, {"rows": "judged"}, "of each step's own batch: base, c"),
    (_dpo("base"), {"rows": "judged"}, "no 'chosen' in"),
  ],
)
def test_what_cannot_be(objective, changes, message):
  with pytest.raises((ConfigError, ValueError), match=message):
    run.run(_config("wrong", objective, **changes))
