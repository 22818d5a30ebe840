"""A sweep of a trainer that is none: it keeps the promises of `research.train` in milliseconds."""

from pathlib import Path

import pytest

from launch import runs, sweep

CONFIG = """
from ml_collections import ConfigDict

def get_config():
  return ConfigDict(
    {"seed": 0, "directory": "", "rate": 1.0, "shape": {"name": "flat"}, "does": "end", "eval": {}}
  )
"""

# What it finds is known: rate * 10 + seed, and items of which it is the mean.
TRAINER = """
import ast, json, math, os, pathlib, signal, sys, time

told = dict(flag[len("--config."):].split("=", 1) for flag in sys.argv[2:])
directory, seed = pathlib.Path(told["directory"]), int(told["seed"])
rate, does = float(told.get("rate", 1)), told.get("does", "end")
directory.mkdir(parents=True, exist_ok=True)
config = {"seed": seed, "directory": str(directory), "rate": rate, "does": does, "eval": {}}
config["shape"] = ast.literal_eval(told.get("shape", "{'name': 'flat'}"))
(directory / "config.json").write_text(json.dumps(config))
with (directory / "starts.txt").open("a") as file:
  file.write(f"{sorted(os.sched_getaffinity(0))}\\n")
starts = len((directory / "starts.txt").read_text().splitlines())
print("working", flush=True)
if does == "refuse":
  print("error: it cannot be", file=sys.stderr)
  sys.exit(2)
if does == "fail" or (does == "fail_once" and starts == 1):
  raise RuntimeError("no such luck")
if does == "die":
  os.kill(os.getpid(), signal.SIGKILL)
if does == "wait" and starts == 1 and seed == 0:
  def leave(signum, frame):
    (directory / "saved").touch()
    sys.exit(128 + signum)
  for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, leave)
  with (directory / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"step": 7, "loss": 1.0}) + "\\n")
  time.sleep(60)
value = math.nan if does == "nan" else rate * 10 + seed
values = [value - 1, value + 1]
records = [{"id": f"{i}", "right": v} for i, v in enumerate(values)]
result = {"name": "sums", "metrics": {"accuracy": value}, "records": records}
result |= {"means": {"accuracy": ["right", None]}, "intervals": {}, "samples": []}
(directory / "evaluations").mkdir(exist_ok=True)
(directory / "evaluations" / "20.json").write_text(json.dumps({"name": "", "results": [result]}))
evaluations = [{"step": 0, "eval/sums/accuracy": 0.0}, {"step": 20, "eval/sums/accuracy": value}]
results = {"steps": 20, "loss": -value, "seconds": 1.5, "evaluations": evaluations}
(directory / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="session")
def make_world():
  """`make_world(directory, patch)` puts a config and the trainer there, and makes it current."""

  def make(directory, patch):
    (directory / "config.py").write_text(CONFIG)
    (directory / "trainer.py").write_text(TRAINER)
    patch.setattr(runs, "TRAIN", (str(directory / "trainer.py"),))
    patch.chdir(directory)
    return directory

  return make


@pytest.fixture(scope="session")
def describe():
  """`describe(arguments)` writes study/sweep.py, whose sweep has these arguments."""

  def write(arguments):
    directory = Path("study")
    directory.mkdir(exist_ok=True)
    (directory / "sweep.py").write_text(
      f"import launch\n\ndef get_sweep():\n  return launch.Sweep('config.py', {arguments})\n"
    )

  return write


@pytest.fixture
def world(tmp_path, monkeypatch, make_world):
  """A directory of a test's own, with a config and the trainer."""
  return make_world(tmp_path, monkeypatch)


@pytest.fixture
def command(world, describe, capsys):
  """`command(sweep's arguments, *flags) -> (code, out, err)`, in this process."""

  def call(arguments, *flags):
    describe(arguments)
    code = sweep.main(["--experiment=study", *flags])
    return code, *capsys.readouterr()

  return call
