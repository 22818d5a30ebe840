"""Our start: from launching `research.train` to the end of its first step, caches warm.

The first run fills what a user's first run fills: compiled programs and prepared data. The
second, with a directory of its own, is the one that counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import worker, workloads


def seconds_to_first_step(model: Path, rows: Path, directory: Path, cache: Path) -> float:
  """One run of the train command that stops after a step.

  Raises:
    RuntimeError: the command failed.
  """
  command = [sys.executable, "-m", "research.train", "--config=benchmarks/config.py"]
  command += [f"--config.directory={directory}", "--config.train.steps=1"]
  command += [f"--config.model.source={model}", f"--config.data.train.source.path={rows}"]
  started = time.time()
  done = subprocess.run(
    command, env=os.environ | {"RESEARCH_CACHE": str(cache)}, capture_output=True, text=True
  )
  if done.returncode:
    raise RuntimeError(f"research.train ended with code {done.returncode}:\n{done.stderr[-2000:]}")
  # The step's line is written when the step is done; saving and leaving come after it.
  return (directory / "metrics.jsonl").stat().st_mtime - started


def main() -> None:
  parser = worker.parser(__doc__)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    scratch = Path(name)
    rows = scratch / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in workloads.startup_rows()))
    seconds = [
      seconds_to_first_step(args.model, rows, scratch / f"run{turn}", scratch / "cache")
      for turn in range(args.warmup + args.steps)
    ]
  worker.report((), startup_seconds=seconds[-1], first_run_seconds=seconds[0])


if __name__ == "__main__":
  main()
