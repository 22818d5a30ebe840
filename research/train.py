"""Trains what a config describes.

  python -m research.train --config=configs/NAME.py [--config.KEY=VALUE ...]

The config's file says what is trained, on what and how; every key of it can be set on the command
line: --config.optimizer.learning_rate=1e-4, --config.trainable=all, --config.train.steps=20. The
keys and what they mean are in configs/base.py.

Ctrl-C or SIGTERM saves and leaves (a second Ctrl-C leaves at once); the same command goes on from
there. A run that is complete prints its results.

Several processes make one run, on one machine or many: each runs this command with the same config
and a directory that all of them see. Under SLURM, Open MPI and GKE's JobSet they find each other;
else tell each one

  --coordinator=HOST:PORT --processes=N --process=I   of process 0; I counts from 0
  --distributed                                       or that JAX asks the cluster (TPU VMs)

  --help       this text
  --traceback  on an error in the config, also where it was found

Exit codes: 0 complete, 1 the training failed, 2 the config cannot be, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import jax

from research.core import command, distributed
from research.core import config as config_lib


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command with these arguments (by default the process's), and returns its code."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if "--help" in argv or "-h" in argv:
    print(__doc__.strip())
    return 0
  # OSError: files, and other processes.
  codes = {config_lib.ConfigError: 2, FloatingPointError: 1, OSError: 1}
  return command.run(lambda: _train(argv), codes, traceback="--traceback" in argv)


def _train(argv: list[str]) -> int:
  argv, member = distributed.take_flags(argv)
  member = member or distributed.of_environment(os.environ)
  config = config_lib.from_command_line([flag for flag in argv if flag != "--traceback"])
  if member:
    distributed.join(member)
  # Imported when the command line is known to be good: it takes a second or two.
  from research.loop import interrupt
  from research.loop.report import Report
  from research.loop.stages import run

  try:
    results = run(config, callbacks=[Report()])
  except interrupt.Interrupted as interrupted:
    return interrupted.code
  if not jax.process_index():
    print(
      f"complete: {results['steps']} steps, {results['useful_tokens']:,.0f} tokens in"
      f" {results['seconds']:.0f} s; figures in {config.directory}/results.json"
    )
  return 0


if __name__ == "__main__":
  sys.exit(main())
