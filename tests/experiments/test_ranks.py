"""The tables of the sweep over ranks, alphas, targets and rates."""

import csv

from experiments.ranks.__main__ import ADAPTERS, SEEDS, read, tables
from experiments.ranks.sweep import RATES, get_sweep, name_of


def test_what_a_factor_changes_is_told_apart(tmp_path):
  def loss(target, rank, times, rate, seed):
    # A seed's own part cancels; alpha of four ranks is best at a lower rate.
    best = 1e-3 if times == 1 else 3e-4
    return 1 + (target == "all") * -0.1 + (rank == 64) * -0.2 + abs(rate - best) + 0.3 * seed

  file = tmp_path / "runs.csv"
  with file.open("w", newline="") as opened:
    rows = csv.writer(opened)
    rows.writerow(["point", "seed", "eval/held_out/loss"])
    for adapter in ADAPTERS:
      for rate in RATES:
        point = f"adapters={name_of(*adapter).replace(' ', '_')},learning_rate={rate}"
        for seed in SEEDS:
          rows.writerow([point, seed, loss(*adapter, rate, seed)])
  told = tables(read(file)).splitlines()
  assert "| attention | 4 | 4 | 0.001 | 1.000 | 1.300 |" in told
  assert "| all | 64 | 256 | 0.0003 | 0.700 | 1.000 |" in told
  changes = [line.split(" | ") for line in told[-4:]]
  assert [cells[1].split()[0] for cells in changes] == ["-0.100", "+0.000", "-0.200", "+0.000"]
  # Of alpha at the first rate, whatever else: 0.0007 less.
  assert changes[3][2] == "-0.001 (-0.001 to -0.001)"
  assert set(get_sweep().grid["adapters"]) == {name_of(*adapter) for adapter in ADAPTERS}
