"""Runs of a tiny problem: to the end, interrupted, gone on with, changed, gone bad."""

import json
import os
import signal
import threading

import jax
import numpy as np
import pytest

from research.core import tree
from research.core.config import ConfigError
from research.evals import Result
from research.io import metrics as metrics_lib
from research.loop.callbacks import Callback
from research.loop.interrupt import Interrupted
from research.loop.run import run


class _Keep(Callback):
  """Keeps the final parameters, and what it was told of on the way."""

  def __init__(self):
    self.told = []
    self.params = None

  def on_start(self, context):
    self.told.append(("start", context.step))

  def on_evaluation(self, context, results):
    self.told.append(("evaluation", context.step, results[0].metrics))

  def on_end(self, context):
    self.told.append(("end", context.step))
    self.params = {p: np.asarray(leaf) for p, leaf in tree.flatten(context.variables).items()}


def _run(config, problem):
  keep = _Keep()
  results = run(config, assemble=lambda _: problem, callbacks=[keep])
  return results, keep


def _lines(directory):
  """Lines of steps without their times, and lines of evaluations."""
  lines = metrics_lib.read_json_lines(directory / "metrics.jsonl")
  timed = ("seconds", "data_seconds", "tokens_per_second", "useful_tokens_per_second")
  timed += ("model_flops_utilization",)
  steps = [line for line in lines if "loss" in line]
  return (
    [{k: v for k, v in line.items() if k not in timed} for line in steps],
    [line for line in lines if "loss" not in line],
  )


class _Evaluator:
  """The mean of the head's bias; `before(calls)` runs first."""

  def __init__(self, before=lambda calls: None):
    self.calls = 0
    self.before = before

  def __call__(self, model, variables, tokenizer):
    self.calls += 1
    self.before(self.calls)
    bias = float(np.mean(np.abs(variables["params"]["lm_head"]["bias"])))
    return Result("head", {"bias": bias}, [{"id": "0", "bias": bias}], {"bias": ("bias", None)})


def _signal_at(number, signum=signal.SIGTERM):
  return lambda now: os.kill(os.getpid(), signum) if now == number else None


@pytest.fixture(scope="module")
def whole():
  """Filled by `uninterrupted`, once."""
  return {}


@pytest.fixture
def uninterrupted(tiny, whole, tmp_path_factory):
  """A run of 8 steps with evaluations every 4, done once: directory, results, callback."""
  if not whole:
    directory = tmp_path_factory.mktemp("whole") / "run"
    config = tiny.config(directory, eval__every_steps=4)
    whole["run"] = (directory, *_run(config, tiny.problem(evaluators=[_Evaluator()])))
  return whole["run"]


def _assert_same_end(first_directory, first, second_directory, second):
  assert _lines(first_directory) == _lines(second_directory)
  assert first.params.keys() == second.params.keys()
  for path, leaf in first.params.items():
    np.testing.assert_array_equal(second.params[path], leaf, err_msg=path)


def test_a_run_from_start_to_end(tiny, uninterrupted):
  directory, results, keep = uninterrupted
  steps, evaluations = _lines(directory)
  assert [line["step"] for line in steps] == list(range(1, 9))
  assert [line["step"] for line in evaluations] == [0, 4, 8]
  assert [told[:2] for told in keep.told] == [
    ("start", 0),
    ("evaluation", 0),
    ("evaluation", 4),
    ("evaluation", 8),
    ("end", 8),
  ]
  assert results == json.loads((directory / "results.json").read_text())
  assert results["steps"] == 8 and results["loss"] == steps[-1]["loss"]
  assert results["evaluations"] == evaluations
  assert evaluations[0]["eval/head/bias"] == 0 < evaluations[2]["eval/head/bias"]
  assert results["trainable_parameters"] == results["parameters"] == 11 * 4 + 4 * 11 + 11
  assert steps[0]["learning_rate"] > 0 and "accuracy" in steps[0]
  last = json.loads((directory / "evaluations" / "8.json").read_text())
  (told,) = [Result.from_json(result) for result in last["results"]]
  assert told.metrics == keep.told[3][2] == {"bias": evaluations[2]["eval/head/bias"]}
  bias = keep.params["params/lm_head/bias"]
  np.testing.assert_array_equal(np.load(directory / "exported.npy"), bias)
  saved = json.loads((directory / "config.json").read_text())
  assert saved == tiny.config(directory, eval__every_steps=4).to_dict()
  (start,) = json.loads((directory / "environment.json").read_text())
  assert start["first_step"] == 0 and start["packages"]["jax"]
  assert set(start["git"] or {"revision": "", "dirty": False}) == {"revision", "dirty"}


def test_a_complete_run_tells_its_results_and_does_nothing(tiny, uninterrupted):
  directory, results, _ = uninterrupted

  def never(config):
    raise AssertionError("assembled again")

  config = tiny.config(directory, eval__every_steps=4)
  assert run(config, assemble=never) == results


@pytest.mark.parametrize(
  ("number", "signum", "code"),
  [(0, signal.SIGINT, 130), (4, signal.SIGTERM, 143), (7, signal.SIGTERM, 143)],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(
  tiny, uninterrupted, tmp_path, capsys, number, signum, code
):
  config = tiny.config(tmp_path / "run", eval__every_steps=4)
  batches = tiny.Batches(before=_signal_at(number, signum))
  with pytest.raises(Interrupted) as caught:
    _run(config, tiny.problem(batches, evaluators=[_Evaluator()]))
  assert caught.value.code == code
  # The step that the signal fell into is finished and saved.
  assert f"saved step {number + 1}" in capsys.readouterr().err
  steps, _ = _lines(tmp_path / "run")
  assert [line["step"] for line in steps] == list(range(1, number + 2))
  _, keep = _run(config, tiny.problem(evaluators=[_Evaluator()]))
  assert keep.told[0] == ("start", number + 1)
  _assert_same_end(uninterrupted[0], uninterrupted[2], tmp_path / "run", keep)
  starts = json.loads((tmp_path / "run" / "environment.json").read_text())
  assert [start["first_step"] for start in starts] == [0, number + 1]


def test_a_signal_while_the_step_is_compiled_waits_for_it(
  tiny, uninterrupted, tmp_path, monkeypatch, capsys
):
  compiled, sent = jax.stages.Lowered.compile, []

  def compile_and_signal(lowered, *args):
    if sent or len(jax.tree.leaves(lowered.out_info)) == 1:  # not the first step
      return compiled(lowered, *args)
    timer = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    found = compiled(lowered, *args)
    sent.append(not timer.is_alive())
    return found

  monkeypatch.setattr(jax.stages.Lowered, "compile", compile_and_signal)
  config = tiny.config(tmp_path / "run", eval__every_steps=4)
  with pytest.raises(Interrupted) as caught:
    _run(config, tiny.problem(evaluators=[_Evaluator()]))
  assert caught.value.code == 143
  assert sent == [True] and "saved step 1" in capsys.readouterr().err
  _, keep = _run(config, tiny.problem(evaluators=[_Evaluator()]))
  assert keep.told[0] == ("start", 1)
  _assert_same_end(uninterrupted[0], uninterrupted[2], tmp_path / "run", keep)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_evaluation_that_is_interrupted_is_done_again(tiny, uninterrupted, tmp_path, call):
  config = tiny.config(tmp_path / "run", eval__every_steps=4)
  evaluator = _Evaluator(before=_signal_at(call))
  with pytest.raises(Interrupted):
    _run(config, tiny.problem(evaluators=[evaluator]))
  assert evaluator.calls == call
  again = _Evaluator()
  _, keep = _run(config, tiny.problem(evaluators=[again]))
  assert again.calls == 4 - call
  _assert_same_end(uninterrupted[0], uninterrupted[2], tmp_path / "run", keep)


def test_a_crash_costs_the_steps_since_the_last_checkpoint(tiny, uninterrupted, tmp_path):
  config = tiny.config(tmp_path / "run", eval__every_steps=4)

  def crash(number):
    if number == 5:
      raise OSError("the disk went away")

  with pytest.raises(OSError, match="went away"):
    _run(config, tiny.problem(tiny.Batches(before=crash), evaluators=[_Evaluator()]))
  seen = []
  problem = tiny.problem(tiny.Batches(before=seen.append), evaluators=[_Evaluator()])
  _, keep = _run(config, problem)
  assert seen == [3, 4, 5, 6, 7]
  _assert_same_end(uninterrupted[0], uninterrupted[2], tmp_path / "run", keep)


def test_a_run_with_another_config_is_refused_by_the_names_of_its_keys(tiny, uninterrupted):
  directory = uninterrupted[0]
  changed = tiny.config(
    directory, seed=1, train__steps=9, optimizer__schedule={"name": "constant"}, log__every_steps=3
  )
  with pytest.raises(ConfigError) as caught:
    _run(changed, tiny.problem())
  told = str(caught.value)
  for key in ("seed", "train.steps", "optimizer.schedule.name"):
    assert key in told
  assert "log" not in told and "eval" not in told
  unlike = tiny.config(directory, log__every_steps=3, checkpoint__keep_last=7)
  assert _run(unlike, None)[0] == uninterrupted[1]


def test_a_key_that_nothing_reads_stops_the_run_before_its_first_step(tiny, tmp_path):
  config = tiny.config(tmp_path / "run", optimizer__clip_nrom=1.0)
  with pytest.raises(
    ConfigError, match="config.optimizer.clip_nrom; did you mean 'optimizer.clip_n"
  ):
    _run(config, tiny.problem())
  assert not (tmp_path / "run" / "config.json").exists()


def test_the_best_checkpoint_stays(tiny, tmp_path):
  config = tiny.config(
    tmp_path / "run",
    eval__every_steps=2,
    checkpoint__keep_last=1,
    checkpoint__keep_best=1,
    checkpoint__best_metric="eval/head/bias",
    checkpoint__best_mode="min",
  )
  _run(config, tiny.problem(evaluators=[_Evaluator()]))
  kept = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.is_dir()}
  assert kept == {"0", "8"}  # the bias starts at its least, 0


def test_gradients_that_stay_bad_stop_the_run(tiny, tmp_path):
  def spoil(number, batch):
    if number in (1, 3, 4, 5):
      batch["weights"] = np.full_like(batch["weights"], np.inf)
    return batch

  config = tiny.config(tmp_path / "run", optimizer__max_nonfinite_steps=3)
  with pytest.raises(FloatingPointError, match=r"params/embed/embedding .* step 6, .* 3 steps"):
    _run(config, tiny.problem(tiny.Batches(change=spoil)))


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"mesh": {"data": 3, "fsdp": 1, "tensor": 1, "sequence": 1}}, "config.mesh: .*devices"),
    ({"checkpoint__keep_last": 0}, "config.checkpoint: keep_last"),
    ({"optimizer__schedule": {"name": "linear", "warm": 1}}, "optimizer.schedule.warm"),
    ({"optimizer__schedule": {"name": "linear", "warmup_steps": 99}}, "optimizer.schedule: warmup"),
  ],
)
def test_settings_that_cannot_be(tiny, tmp_path, changes, told):
  config = tiny.config(tmp_path / "run", **changes)
  with pytest.raises(ConfigError, match=told):
    _run(config, tiny.problem())


def test_a_run_needs_a_directory(tiny):
  with pytest.raises(ConfigError, match="config.directory is empty"):
    _run(tiny.config(""), tiny.problem())
