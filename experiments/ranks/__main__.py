"""What rank, alpha and targets change in the sweep's runs, at each adapter's best rate and at each.

python -m experiments.ranks
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from experiments.ranks.sweep import ALPHAS, RANKS, RATES, TARGETS, name_of
from launch import results

Adapter = tuple[str, int, int]  # targets, rank, alpha in ranks
Run = tuple[Adapter, float, int]  # with its rate and seed
SEEDS = (0, 1)
ADAPTERS = tuple(itertools.product(TARGETS, RANKS, ALPHAS))


def main() -> int:
  """Prints the tables of the sweep's runs."""
  parser = argparse.ArgumentParser("python -m experiments.ranks", description=__doc__)
  parser.add_argument("--runs", type=Path, default=Path("runs/ranks/runs.csv"))
  file = parser.parse_args().runs
  if not file.is_file():
    parser.error(f"there is no {file}; run launch.sweep first, or give its runs.csv as --runs")
  print(tables(read(file)))
  return 0


def read(file: Path) -> dict[Run, float]:
  """The held-out loss of each run.

  Raises:
    KeyError: the file lacks one of them.
  """
  with file.open(newline="") as opened:
    rows = {(row["point"], row["seed"]): row for row in csv.DictReader(opened)}
  return {
    (adapter, rate, seed): float(
      rows[f"adapters={name_of(*adapter).replace(' ', '_')},learning_rate={rate}", str(seed)][
        "eval/held_out/loss"
      ]
    )
    for adapter, rate, seed in itertools.product(ADAPTERS, RATES, SEEDS)
  }


def tables(losses: Mapping[Run, float]) -> str:
  """Each adapter at its best rate, then what a factor changes, all else equal."""
  best = {
    adapter: min(RATES, key=lambda rate: sum(losses[adapter, rate, seed] for seed in SEEDS))
    for adapter in ADAPTERS
  }
  lines = ["| targets | rank | alpha | rate | loss, seed 0 | seed 1 |"]
  lines += ["| --- | --- | --- | --- | --- | --- |"]
  for adapter, rate in best.items():
    (target, rank, times), told = adapter, [f"{losses[adapter, rate, seed]:.3f}" for seed in SEEDS]
    lines.append(f"| {target} | {rank} | {times * rank} | {rate:g} | {' | '.join(told)} |")
  rates = " | ".join(f"{rate:g}" for rate in RATES)
  lines += ["", f"| what changes | at each one's best rate | {rates} |"]
  lines += ["| --- " * (2 + len(RATES)) + "|"]
  for told, place, one, other in (
    ("all projections for attention's", 0, "all", "attention"),
    ("rank 16 for 4", 1, 16, 4),
    ("rank 64 for 4", 1, 64, 4),
    ("alpha four ranks for one", 2, 4, 1),
  ):
    apart = partial(_apart, losses, place, one, other)
    cells = [apart(best.__getitem__), *(apart(lambda _, rate=rate: rate) for rate in RATES)]
    lines.append(f"| {told} | {' | '.join(cells)} |")
  return "\n".join(lines)


def _apart(
  losses: Mapping[Run, float], place: int, one: Any, other: Any, rate: Callable[[Adapter], float]
) -> str:
  """What `one` in place of `other` changes, over other factors and seeds: mean and interval."""
  found = []
  for adapter, seed in itertools.product(ADAPTERS, SEEDS):
    if adapter[place] == one:
      base = (*adapter[:place], other, *adapter[place + 1 :])
      found.append(losses[adapter, rate(adapter), seed] - losses[base, rate(base), seed])
  mean = results.mean(found)
  low, high = mean.interval or (math.nan, math.nan)
  return f"{mean.value:+.3f} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
  raise SystemExit(main())
