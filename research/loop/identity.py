"""What makes a run the run that it is: its config, but for what changes nothing of its result."""

from __future__ import annotations

import json
from pathlib import Path

from research.core import config as config_lib

# What may differ when a run goes on: nothing here changes what is trained, though sums over another
# mesh are rounded otherwise. Everything else does, `train.steps` included, on which most schedules
# depend.
MAY_CHANGE = ("checkpoint", "compilation_cache", "data.eval", "directory", "eval", "log", "mesh")


def changed(directory: Path, config: config_lib.Config) -> list[str]:
  """The keys by which the run in `directory` is another one than `config` describes.

  None where there is no run yet.
  """
  file = directory / "config.json"
  if not file.exists():
    return []
  keys = config_lib.differences(json.loads(file.read_text()), config.to_dict())
  return [key for key in keys if not f"{key}.".startswith(tuple(f"{k}." for k in MAY_CHANGE))]
