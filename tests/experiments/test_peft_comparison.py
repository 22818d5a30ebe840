"""The comparison's table, from figures of several calls, and what its command does with runs."""

import json

import pytest

from experiments.peft_comparison import __main__ as comparison
from experiments.peft_comparison import config
from research.core import config as config_lib

ROW = {"method": "ia3", "rate": 0.01, "seeds": 2, "spread": 0.1, "base_accuracy": 0.25}
ROW |= {"accuracy": 0.5, "shares": [0.5, 0.5, 0.0, 1.0], "interval": [0.1, 0.9], "share": 0.01}
ROW |= {"parameters": 1000, "adapter_kb": 4.0, "forgetting": 0.5}


def test_a_table_of_what_is_known():
  full = {**ROW, "method": "full", "shares": [1.0, 1.0, 0.5, 1.5], "accuracy": 1.0}
  costs = {"method": "norms", "peak_gb": 1.5, "tokens_per_second": 1234.5}
  lines = comparison.table([full, ROW, costs]).splitlines()
  assert len({line.count("|") for line in lines}) == 1 and "0.250" in lines[2]
  assert "-0.500 [-0.500, -0.500]" in lines[4] and "-0.500" not in lines[3]
  assert "50% [" in lines[4] and "%" not in lines[5]
  assert "1,234" in lines[5] and "1.50" in lines[5]


@pytest.fixture
def called(monkeypatch, tmp_path):
  """The command with arguments, its runs being made up; the runs that it started."""
  started = []

  def run(command, **_):
    flags = dict(each[2:].split("=", 1) for each in command if each.startswith("--"))
    started.append(flags)
    directory = tmp_path / flags["directory"]
    directory.mkdir(parents=True, exist_ok=True)
    right = float(flags.get("rate", 1)) < 0.02  # the highest rates of some are too high
    records = [{"correct": right}] * (config.VALIDATION + config.TEST)
    found = {"peak_bytes": 2e9, "tokens_per_second": 100.0, "adapter_bytes": None}
    found |= {"verifiable": {"records": records}, "text": {"metrics": {"nll_per_token": 2.0}}}
    (directory / "found.json").write_text(json.dumps(found))
    (directory / "results.json").write_text('{"trainable_parameters": 5, "parameters": 10}')
    return comparison.subprocess.CompletedProcess(command, 0)

  def call(*flags):
    started.clear()
    (tmp_path / "text.txt").write_text("some text")
    directory = tmp_path / "runs"
    argv = ["peft", f"--text={tmp_path}/text.txt", f"--directory={directory}", *flags]
    monkeypatch.setattr(comparison.sys, "argv", argv)
    assert comparison.main() == 0
    return json.loads((directory / "60_steps" / "figures.json").read_text())

  monkeypatch.setattr(comparison.subprocess, "run", run)
  return call, started


def test_quality_and_costs_come_together_in_any_order(called):
  call, started = called
  (row,) = call("--part=costs", "--methods=ia3")
  assert row == {"method": "ia3", "peak_gb": 2.0, "tokens_per_second": 100.0}
  assert len(started) == 1 and "text" not in started[0]
  full, ia3 = call("--part=quality", "--methods=full,ia3", "--jobs=2")
  assert full["method"] == "full" and "peak_gb" not in full
  assert (
    ia3["accuracy"] == 1 and ia3["peak_gb"] == 2 and ia3["rate"] == config.METHODS["ia3"].rates[0]
  )
  assert len(started) == 1 + 2 * (3 + 2)  # the base; rates, and two more seeds of the best
  assert len(call("--methods=ia3")) == 2 and not started  # all is there


def test_a_run_that_fails_is_told(called, monkeypatch):
  call, _ = called
  failed = comparison.subprocess.CompletedProcess([], 1)
  monkeypatch.setattr(comparison.subprocess, "run", lambda *_, **__: failed)
  with pytest.raises(SystemExit, match="base ended with 1"):
    call("--methods=ia3")


@pytest.mark.parametrize("method", config.METHODS)
def test_a_methods_run_can_be(method):
  made = config.get_config(method, 1e-3, 0, "runs/x", 60)
  read = config_lib.Config(made.to_dict())
  rule = config.METHODS[method].rule
  assert list(read.adapters) == ([rule] if rule else []) and read.optimizer.learning_rate == 1e-3
