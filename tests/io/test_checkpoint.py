"""Checkpoints: what comes back, what stays, what a crash leaves."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from research.core import tree
from research.io.checkpoint import Checkpoints, write_json

ROOT = Path(__file__).parents[2]


@struct.dataclass
class _Node:
  a: jax.Array
  b: jax.Array | None


def _state(value):
  return {
    "trainable": {"x": _Node(jnp.full((2, 3), value), None), "y": None},
    "moments": (jnp.full(3, value, jnp.bfloat16), {"count": jnp.asarray(7, jnp.int32)}),
  }


def _abstract(state):
  return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v.sharding), state)


def test_what_was_saved_comes_back_bit_by_bit(tmp_path):
  state, data = _state(1 / 3), {"window": [3, 0], "rows": 5}
  first = Checkpoints(tmp_path / "c", keep_last=1)
  assert first.latest_step() is None
  first.save(4, state, data)
  first.save(4, _state(2), {})  # a step is saved once
  first.close()
  again = Checkpoints(tmp_path / "c", keep_last=1)
  restored, restored_data = again.restore(again.latest_step(), _abstract(state))
  assert again.latest_step() == 4 and restored_data == data
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  for path, leaf in tree.flatten(state).items():
    got = tree.flatten(restored)[path]
    assert got.dtype == leaf.dtype
    np.testing.assert_array_equal(got, leaf, err_msg=path)
  again.close()


def test_donating_what_is_being_saved_changes_nothing(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep_last=5)
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = jnp.zeros((512, 1024))
  for step in range(5):
    checkpoints.save(step, {"x": x}, {})
    x = add(x)
  checkpoints.wait()
  for step in range(5):
    restored, _ = checkpoints.restore(step, _abstract({"x": x}))
    np.testing.assert_array_equal(restored["x"], step)
  checkpoints.close()


@pytest.mark.parametrize(("mode", "best"), [("max", 30), ("min", 10)])
def test_the_last_and_the_best_stay(tmp_path, mode, best):
  checkpoints = Checkpoints(
    tmp_path, keep_last=2, keep_best=1, best_metric="eval/acc", best_mode=mode
  )
  measured = {10: 0.1, 20: 0.5, 30: 0.9, 40: 0.7}
  for step in range(5, 70, 5):
    metrics = {"eval/acc": measured[step]} if step in measured else None
    checkpoints.save(step, {"x": jnp.zeros(1)}, {}, metrics)
  checkpoints.wait()
  assert checkpoints.all_steps() == [best, 60, 65]
  checkpoints.close()


def test_an_unmeasured_metric_is_named(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best=1, best_metric="eval/accuracy")
  with pytest.raises(ValueError, match="'eval/accuracy' is not measured; did you mean 'eval/acc'"):
    checkpoints.save(1, {"x": jnp.zeros(1)}, {}, {"eval/acc": 1.0})
  checkpoints.close()


def test_a_checkpoint_of_another_shape_is_told_apart(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep_last=1)
  checkpoints.save(1, {"x": jnp.zeros(3), "y": jnp.zeros(1)}, {})
  checkpoints.wait()
  with pytest.raises(ValueError, match=r"has x as float32\[3\], but the run as float32\[4\]"):
    checkpoints.restore(1, _abstract({"x": jnp.zeros(4), "y": jnp.zeros(1)}))
  with pytest.raises(ValueError, match="has y as .* but the run as nothing"):
    checkpoints.restore(1, _abstract({"x": jnp.zeros(3)}))
  checkpoints.close()


KILLED = """
import sys
from pathlib import Path
import jax
from research.io.checkpoint import Checkpoints

checkpoints = Checkpoints(Path(sys.argv[1]), keep_last=3)
for step in (1, 2):
  checkpoints.save(step, {"x": jax.random.normal(jax.random.key(step), (2**22,))}, {})
  checkpoints.wait()
"""


def test_a_process_that_is_killed_while_it_writes_loses_what_it_writes_alone(tmp_path):
  program = [sys.executable, "-c", KILLED, str(tmp_path)]
  process = subprocess.Popen(program, env={**os.environ, "PYTHONPATH": str(ROOT)})
  while process.poll() is None and not list(tmp_path.glob("2.orbax-checkpoint-tmp*/state/*")):
    time.sleep(0.001)
  process.kill()
  assert process.wait(60) == -signal.SIGKILL
  assert list(tmp_path.glob("2.orbax-checkpoint-tmp*")) and not (tmp_path / "2").exists()
  again = Checkpoints(tmp_path, keep_last=3)
  expected = {"x": jax.random.normal(jax.random.key(1), (2**22,))}
  assert again.latest_step() == 1
  np.testing.assert_array_equal(again.restore(1, _abstract(expected))[0]["x"], expected["x"])
  again.save(2, expected, {})
  again.close()
  assert (tmp_path / "2").is_dir()


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep_last=3)
  checkpoints.save(1, {"x": jnp.zeros(3)}, {})
  checkpoints.close()
  # What Orbax leaves when it is killed while writing: a directory without its final name.
  unfinished = tmp_path / "2.orbax-checkpoint-tmp"
  unfinished.mkdir()
  (unfinished / "state").mkdir()
  again = Checkpoints(tmp_path, keep_last=3)
  assert again.latest_step() == 1
  again.close()


@pytest.mark.parametrize(
  ("settings", "told"),
  [
    ({"keep_last": 0}, "keep_last is 0"),
    ({"keep_last": 1, "keep_best": 1}, "needs a best_metric"),
    ({"keep_last": 1, "best_mode": "most"}, "'most'"),
  ],
)
def test_impossible_settings(tmp_path, settings, told):
  with pytest.raises(ValueError, match=told):
    Checkpoints(tmp_path, **settings)


def test_json_is_replaced_at_once(tmp_path):
  file = tmp_path / "x.json"
  write_json(file, {"a": 1})
  with pytest.raises(TypeError):
    write_json(file, {"a": object()})
  assert json.loads(file.read_text()) == {"a": 1}
  write_json(file, [2])
  assert json.loads(file.read_text()) == [2]
  assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("damaged", ["state/manifest.ocdbt", "state/_METADATA", "data/metadata"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(tmp_path, damaged):
  directory = tmp_path / "c"
  first = Checkpoints(directory, keep_last=2)
  for step in (1, 2):
    first.save(step, _state(step), {"rows": step})
  first.close()
  file = directory / "2" / damaged
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  again = Checkpoints(directory, keep_last=2)
  with pytest.raises(OSError, match="checkpoint 2 cannot be read: .*; move it out of .*/c, and"):
    again.restore(again.latest_step(), _abstract(_state(0)))
  again.close()
  (directory / "2").rename(tmp_path / "2")
  whole = Checkpoints(directory, keep_last=2)
  assert whole.restore(whole.latest_step(), _abstract(_state(0)))[1] == {"rows": 1}
  whole.close()


def test_a_full_disk_is_told(tmp_path):
  # A limit on the size of files in place of one on the disk.
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  checkpoints = Checkpoints(tmp_path / "c", keep_last=1)
  checkpoints.save(1, {"x": jnp.zeros(8)}, {})
  checkpoints.wait()
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    with pytest.raises(OSError, match="not written: .*; the same command goes on from the newest"):
      checkpoints.save(2, {"x": jax.random.normal(jax.random.key(0), (100_000,))}, {})
      checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  again = Checkpoints(tmp_path / "c", keep_last=1)
  assert again.latest_step() == 1
  again.close()
