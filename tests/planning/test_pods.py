"""The configs of pods compile for their topology and fit: minutes each, by `pytest -m slow`."""

import json
import re
from pathlib import Path

import pytest

from research import plan

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("pod_*.py"))
COMMAND = re.compile(r"research\.plan --config=configs/(\w+)\.py --topology=(\S+)")


@pytest.mark.slow
@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_pods_config_fits(file, devices, tmp_path):
  del devices  # libtpu is there
  command = COMMAND.search(file.read_text())
  assert command is not None and command[1] == file.stem
  record = tmp_path / "plan.json"
  assert plan.main([f"--config={file}", f"--topology={command[2]}", f"--json={record}"]) == 0
  found = json.loads(record.read_text())
  assert found["replicated"] < 0.02
  assert found["utilisation"] >= 0.5 or found["bottleneck"]


def test_there_are_configs_of_pods():
  assert len(CONFIGS) == 6
