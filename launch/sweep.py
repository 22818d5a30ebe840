"""Runs what `experiments/NAME/sweep.py` describes, and tells what was found.

  python -m launch.sweep --experiment=experiments/NAME --parallel=2 --cpu_sets
  python -m launch.sweep --experiment=experiments/NAME --on=ray --gpus=1
  python -m launch.sweep --experiment=experiments/NAME --on=slurm --slurm=timeout_min=60
  python -m launch.sweep --experiment=experiments/NAME --on=gke --tpu=v5litepod-16 --dry_run ...
  python -m launch.sweep --experiment=experiments/NAME --list
  python -m launch.sweep --experiment=experiments/NAME --report

Each run is `python -m research.train` in runs/NAME/POINT/seed_S, which is its identity: runs that
are complete are not run again, and those that stopped go on. A run that fails is tried again, then
told in the table; the others run on. Ctrl-C or SIGTERM is passed on: runs save and leave (a second
one ends them at once), and the same command goes on from there. At the end of all, and by
--report at any time, REPORT.md, results.csv, runs.csv, plot.png and report.html are written beside
the runs. Overrides of all runs go behind: --config.train.steps=20 (with a --directory of its own).

Exit codes: 0 all complete, 1 some failed, 2 the description cannot be, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from launch import description, driver, points, process, runs
from launch.description import Sweep
from launch.engines import options
from launch.points import Point
from launch.runs import Run
from launch.search import JOURNAL, Trials
from research.core import command
from research.core.config import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command with these arguments (by default the process's), and returns its code."""
  args = _arguments(list(sys.argv[1:] if argv is None else argv))
  return command.run(lambda: _sweep(args), {ConfigError: 2}, traceback=args.traceback)


def _arguments(argv: list[str]) -> argparse.Namespace:
  parser = command.parser("launch.sweep", __doc__)
  parser.add_argument(
    "--experiment", type=Path, required=True, metavar="DIR", help="the directory of sweep.py"
  )
  parser.add_argument(
    "--directory", type=Path, metavar="DIR", help="of the runs and figures (runs/NAME)"
  )
  parser.add_argument(
    "--tries", type=int, default=2, metavar="N", help="how often a run is tried that fails (2)"
  )
  what = parser.add_mutually_exclusive_group()
  what.add_argument("--list", action="store_true", help="tell the runs and how they stand")
  what.add_argument("--dry_run", action="store_true", help="print what would be run")
  what.add_argument("--report", action="store_true", help="write the figures of what is there")
  options.add_arguments(parser)
  parser.add_argument("--traceback", action="store_true", help="on an error, where it was found")
  args, rest = parser.parse_known_args(argv)
  for argument in rest:
    if not argument.startswith("--config."):
      parser.error(f"unknown argument {argument}")
  for name in ("parallel", "tries"):
    if (given := getattr(args, name)) is not None and given < 1:
      parser.error(f"--{name} is {given}; it is 1 or more")
  args.extra = rest
  return args


def _sweep(args: argparse.Namespace) -> int:
  sweep = description.load(args.experiment)
  root = args.directory or Path("runs") / _name(args)
  fixed = points.expand(sweep)
  listed = runs.of(sweep, fixed, root, args.extra)
  trials = _trials(sweep, root, args)
  found = [*fixed, *(trials.points() if trials else ())]
  every = runs.of(sweep, found, root, args.extra)
  points.baselines(found, sweep.baseline)
  if args.list:
    _list(every)
    return 0
  if args.report:
    return _report(args, sweep, fixed, trials, root)
  options.require_fitting(args)
  runs.require_possible(every)
  if args.dry_run:
    left = [run for run in every if runs.state(run) != runs.COMPLETE]
    sys.stdout.write(options.render(args, root, _name(args), left))
    if sweep.search:
      print(f"# and the trials of the search, up to {sweep.search.trials}, as results come")
    return 0
  if busy := [run.name for run in every if runs.state(run) == runs.RUNNING]:
    raise ConfigError(f"{', '.join(busy)}: another process runs it; wait for it, or end it")
  total = len(listed) + (sweep.search.trials * len(sweep.seeds) if sweep.search else 0)
  engine, tries = options.build(args, root, _name(args))
  work = driver.Driver(engine, tries=tries, total=total, metrics=sweep.metrics, say=_say)
  code = work.drive(listed, trials)
  if code in (0, 1):
    _report(args, sweep, fixed, trials, root)
  return code


def _trials(sweep: Sweep, root: Path, args: argparse.Namespace) -> Trials | None:
  reads = args.list or args.report or args.dry_run
  if not sweep.search or (reads and not (root / JOURNAL).exists()):
    return None

  def runs_of(point: Point) -> list[Run]:
    made = runs.of(sweep, [point], root, args.extra)
    runs.require_possible(made)
    return made

  at_once = math.ceil((args.parallel or 1) / len(sweep.seeds))
  return Trials(sweep.search, sweep.metrics[0], root, runs_of, at_once)


def _list(every: Sequence[Run]) -> None:
  width = max((len(run.name) for run in every), default=0)
  for run in every:
    state = runs.state(run)
    tried = runs.attempts(run)
    why = f"  {tried[-1].error}; see {process.log(run)}" if state == runs.FAILED else ""
    print(f"{run.name:{width}}  {state:8}  step {runs.step(run)}{why}")
  states = [runs.state(run) for run in every]
  print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))))


def _report(
  args: argparse.Namespace,
  sweep: Sweep,
  fixed: Sequence[Point],
  trials: Trials | None,
  root: Path,
) -> int:
  # They take seconds to import.
  from launch import report, results

  found = [*fixed, *(trials.points() if trials else ())]
  every = runs.of(sweep, found, root, args.extra)
  against = points.baselines(found, sweep.baseline)
  rows = results.collect(found, every, sweep.metrics, against)
  best = trials.best() if trials else None
  report.write(_name(args), sweep, rows, root, best)
  _say(f"figures in {root}/REPORT.md and {root}/report.html")
  return 1 if any(row.runs.get(runs.FAILED) for row in rows) else 0


def _name(args: argparse.Namespace) -> str:
  return args.experiment.resolve().name


def _say(line: str) -> None:
  print(line, flush=True)


if __name__ == "__main__":
  sys.exit(main())
