"""A run whose ranks are reallocated: its metrics, its ranks, and the same bits when it goes on."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from research import peft
from research.core import tree
from research.core.config import ConfigError
from research.io import metrics as metrics_lib
from research.loop.callbacks import Callback
from research.loop.interrupt import Interrupted
from research.loop.run import run

RULE = {"target": "lm_head/kernel", "name": "adalora", "init_r": 4, "target_r": 2, "tfinal": 2}


class _Keep(Callback):
  def on_end(self, context):
    self.state = jax.device_get((context.state.trainable, context.state.opt_state))


@pytest.fixture
def problem(tiny):
  """A function of batches; its loss is that of the merged kernel."""

  def loss(model, variables, batch, rng, step):
    merged = peft.merge(variables["params"], variables["adapters"])
    return tiny.loss(model, {"params": merged, "adapters": {}}, batch, rng, step)

  def make(batches=None, **rule):
    adapters = peft.attach([RULE | rule], tiny.params, jax.random.key(0))
    trains = peft.trainable_paths(adapters)
    return dataclasses.replace(
      tiny.problem(batches),
      variables={"params": tiny.params, "adapters": adapters},
      trains=lambda path, leaf: path.removeprefix("adapters/") in trains,
      objective=loss,
    )

  return make


def _run(config, problem):
  keep = _Keep()
  run(config, assemble=lambda _: problem, callbacks=[keep])
  return keep.state


def test_ranks_go_and_a_run_that_goes_on_ends_with_the_same_bits(tiny, problem, tmp_path):
  config = tiny.config(tmp_path / "whole")
  # A gradient that is not finite leaves the averages as they are, too.
  bad = lambda number, batch: (  # noqa: E731
    batch | {"weights": batch["weights"] * np.inf} if number == 3 else batch
  )
  trainable, moments = _run(config, problem(tiny.Batches(change=bad)))
  adapter = trainable["adapters"]["lm_head"]["kernel"]
  assert (adapter.e != 0).sum() == 2
  assert moments["around"].updates == 7
  assert np.isfinite(np.concatenate([x.ravel() for x in jax.tree.leaves(moments)])).all()
  lines = [x for x in metrics_lib.read_json_lines(tmp_path / "whole/metrics.jsonl") if "loss" in x]
  first = problem().variables["adapters"]
  np.testing.assert_allclose(lines[0]["penalty"], peft.penalty(first), rtol=1e-6)
  assert lines[-1]["penalty"] < lines[0]["penalty"]

  def interrupt(number):
    if number == 4:
      os.kill(os.getpid(), signal.SIGTERM)

  config = tiny.config(tmp_path / "two")
  with pytest.raises(Interrupted):
    _run(config, problem(tiny.Batches(interrupt, bad)))
  again = _run(config, problem(tiny.Batches(change=bad)))
  for path, leaf in tree.flatten((trainable, moments)).items():
    np.testing.assert_array_equal(tree.flatten(again)[path], leaf, err_msg=path)


def test_a_run_that_is_too_short_says_so(tiny, problem, tmp_path):
  with pytest.raises(ConfigError, match="config.adapters: AdaLoRA's tinit 6 and tfinal 2 leave"):
    _run(tiny.config(tmp_path / "short"), problem(tinit=6))
