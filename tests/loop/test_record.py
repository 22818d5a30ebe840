"""From a step's metrics to lines: means by weight, rates, utilisation, the end of a bad run."""

import time
import types

import jax.numpy as jnp
import numpy as np
import pytest

from research.io import metrics as metrics_lib
from research.loop import record
from research.loop.record import Recorder


def _metrics(loss, weight, *, skipped_in_row=0, nonfinite=(False, False)):
  return {
    "sums": {"loss": (jnp.float32(loss * weight), jnp.float32(weight))},
    "counts": {
      "tokens": jnp.float32(100),
      "useful_tokens": jnp.float32(75),
      "context": jnp.float32(750),
    },
    "gradient_norm": jnp.float32(0.5),
    "learning_rate": jnp.float32(0.25),
    "skipped_in_row": jnp.int32(skipped_in_row),
    "nonfinite": np.asarray(nonfinite),
  }


@pytest.fixture
def recorder(tmp_path):
  """Opens a recorder; in the test, so that it prints where the test looks."""
  opened = []

  def open_recorder():
    opened.append(
      Recorder(
        tmp_path,
        resume_step=None,
        total_steps=5,
        every_steps=2,
        tensorboard=False,
        flops_per_token=lambda length: 1000 + length,
        peak_flops=1e6,
        trainable_paths=["params/a", "params/b"],
        max_nonfinite_steps=3,
      )
    )
    return opened[0]

  yield open_recorder
  opened[0].close()


def _lines(tmp_path):
  return metrics_lib.read_json_lines(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("beside", [False, True])
def test_every_step_is_a_line_with_its_own_time(tmp_path, recorder, monkeypatch, beside):
  """Of steps that are done when they are told of, or that run beside what follows."""
  monkeypatch.setattr(record, "_is_done", lambda metrics: not beside)
  recorder = recorder()
  for step in range(1, 4):
    recorder.begin()
    if not beside:
      time.sleep(0.01)
    recorder.push(step, _metrics(step, 4.0))
    assert [line["step"] for line in _lines(tmp_path)] == list(range(1, step + (not beside)))
    if beside:
      time.sleep(0.01)
  recorder.drain()
  lines = _lines(tmp_path)
  assert [line["loss"] for line in lines] == [1, 2, 3]
  for line in lines:
    assert (line["padding"], line["gradient_norm"], line["learning_rate"]) == (0.25, 0.5, 0.25)
    assert (line["tokens"], line["useful_tokens"]) == (100, 75)
  assert "tokens_per_second" not in lines[0]  # it was compiling
  for line in lines[1:]:
    assert line["seconds"] >= 0.009
    assert line["tokens_per_second"] == pytest.approx(100 / line["seconds"])
    assert line["useful_tokens_per_second"] == pytest.approx(75 / line["seconds"])
    # Twice the mean context of 10 is the length of a row that has it.
    flops = 75 * (1000 + 20)
    assert line["model_flops_utilization"] == pytest.approx(flops / line["seconds"] / 1e6)


@pytest.mark.parametrize("beside", [False, True])
def test_waiting_for_data_is_a_part_of_a_step_s_time(
  tmp_path, recorder, monkeypatch, beside, capsys
):
  now = 0.0
  monkeypatch.setattr(record, "time", types.SimpleNamespace(perf_counter=lambda: now))
  monkeypatch.setattr(record, "_is_done", lambda metrics: not beside)
  recorder = recorder()
  for step in range(1, 5):
    recorder.begin()
    with recorder.waiting():
      now += 3.0 if step == 3 else 0.5
    now += 1.0
    recorder.push(step, _metrics(step, 4.0))
  recorder.drain()
  found = [(line["data_seconds"], line["seconds"]) for line in _lines(tmp_path)]
  if beside:  # a step that runs, the batch of the next one is waited for
    assert found == [(1.0, 3.0), (3.0, 4.0), (0.5, 1.5), (0.0, 0.0)]
    share = "64%"  # 3.5 of 5.5, the first step left out
  else:
    assert found == [(0.5, 1.5), (0.5, 1.5), (3.0, 4.0), (0.5, 1.5)]
    share = "57%"  # 4 of 7
  assert (
    f"step 4/5  loss 3.5000  {300 / (5.5 if beside else 7.0):.0f} tokens/s, {share} waiting"
    in (capsys.readouterr().err)
  )


def test_the_terminal_shows_the_window_s_mean_by_weight(recorder, capsys):
  recorder = recorder()
  for step, (loss, weight) in enumerate([(1.0, 1.0), (5.0, 3.0), (7.0, 1.0), (2.0, 1.0)], 1):
    recorder.begin()
    recorder.push(step, _metrics(loss, weight))
  recorder.drain()
  told = capsys.readouterr().err.splitlines()
  assert [line.split("  ")[:2] for line in told] == [
    ["step 2/5", "loss 4.0000"],
    ["step 4/5", "loss 4.5000"],
  ]


def test_gradients_of_layers_are_metrics_and_an_uneven_one_is_told(tmp_path, recorder, capsys):
  recorder = recorder()
  norms = {"layers": np.array([1.0, 2.0, 500.0]), "outside": np.array(3.0)}
  for step in range(1, 25):
    recorder.push(step, _metrics(1.0, 1.0) | {"gradients": norms})
  recorder.drain()
  for line in _lines(tmp_path):
    assert [line[f"gradients/layers/{i}"] for i in range(3)] == [1, 2, 500]
    assert line["gradients/outside"] == 3
  (note,) = [line for line in capsys.readouterr().err.splitlines() if "explodes" in line]
  assert note.startswith("step 20: the gradient of layers/2 explodes: its norm is 5e+02")


def test_an_evaluation_has_its_own_line(tmp_path, recorder, capsys):
  recorder = recorder()
  recorder.evaluation(2, {"eval/accuracy": 0.5})
  assert _lines(tmp_path) == [{"step": 2, "eval/accuracy": 0.5}]
  assert capsys.readouterr().err == "step 2  eval/accuracy 0.5\n"


def test_a_run_of_bad_gradients_ends_with_the_parameter_s_path(tmp_path, recorder, capsys):
  recorder = recorder()
  recorder.push(1, _metrics(1.0, 1.0, skipped_in_row=1, nonfinite=(False, True)))
  recorder.push(2, _metrics(np.nan, 1.0, skipped_in_row=2))
  with pytest.raises(
    FloatingPointError, match="gradient of params/a and of 1 more .* step 3.* 3 st"
  ):
    recorder.push(3, _metrics(np.nan, 1.0, skipped_in_row=3, nonfinite=(True, True)))
    recorder.drain()
  told = capsys.readouterr().err
  assert "step 1: the gradient of params/b is not finite; update skipped (1 in a row)" in told
  assert "step 2: the loss is not finite; update skipped (2 in a row)" in told
  assert [line["loss"] for line in _lines(tmp_path)] == [1.0, None, None]
