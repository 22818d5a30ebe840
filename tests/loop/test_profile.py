"""Steps of a run that are traced: which, where, and what is refused before anything is loaded."""

import gzip
import json
import os
import signal
import types

import pytest

from research.core.config import ConfigError
from research.io import metrics as metrics_lib
from research.loop.interrupt import Interrupted
from research.loop.profile import Profile
from research.loop.run import run


def _traced(directory):
  """The numbers of the steps in each trace of a run, which are files that Perfetto reads."""
  found = []
  for file in sorted(directory.glob("profile/plugins/profile/*/perfetto_trace.json.gz")):
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    found.append(
      sorted(int(e["args"]["step_num"]) for e in events if "step_num" in e.get("args", {}))
    )
    assert next(file.parent.glob("*.xplane.pb")).stat().st_size > 0  # TensorBoard's
  return found


def test_steps_are_traced_and_nothing_else_of_the_run_changes(tiny, tmp_path, capsys):
  lines = {}
  for name, pair in (("plain", ()), ("traced", (3, 4))):
    directory = tmp_path / name
    run(tiny.config(directory, log__profile=pair), assemble=lambda _: tiny.problem())
    lines[name] = metrics_lib.read_json_lines(directory / "metrics.jsonl")
    assert _traced(directory) == ([[3, 4]] if pair else [])
    assert (directory / "profile").exists() == bool(pair)
    # The last step may run when no batch is left to wait for.
    assert all(0 <= line["data_seconds"] <= line["seconds"] for line in lines[name])
    assert sum(line["data_seconds"] for line in lines[name]) > 0
  told = f"step 4: a trace of the steps from 3 is in {tmp_path / 'traced' / 'profile'}\n"
  assert capsys.readouterr().err.count(told) == 1
  assert [line["loss"] for line in lines["plain"]] == [line["loss"] for line in lines["traced"]]


def test_a_run_that_goes_on_traces_what_is_left(tiny, tmp_path):
  signaled = tiny.Batches(
    before=lambda number: os.kill(os.getpid(), signal.SIGTERM) if number == 3 else None
  )
  config = tiny.config(tmp_path / "run", log__profile=(3, 5), checkpoint__every_steps=0)
  with pytest.raises(Interrupted):
    run(config, assemble=lambda _: tiny.problem(signaled))
  assert _traced(tmp_path / "run") == [[3, 4]]
  (tmp_path / "run/profile").rename(tmp_path / "first")  # traces are named by the second
  run(config, assemble=lambda _: tiny.problem())
  assert _traced(tmp_path / "run") == [[5]]


def test_a_run_that_goes_on_behind_them_traces_nothing(tmp_path):
  profile = Profile((3, 5), 8)
  for step in (0, 1, 5, 7):  # that are done
    with profile.step(types.SimpleNamespace(step=step, directory=tmp_path), settle=pytest.fail):
      pass
  profile.close()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pair", [(3,), (0, 2), (4, 3), (7, 9), (1.0, 2.0), (1, 2, 3)])
def test_pairs_that_cannot_be(tiny, tmp_path, pair):
  with pytest.raises(ConfigError, match="the first and the last of steps 1 to 8"):
    run(tiny.config(tmp_path / "run", log__profile=pair))
  assert not (tmp_path / "run").exists()
