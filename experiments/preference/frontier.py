"""Draws the sweep's reward against KL: verified accuracy over the distance from the reference.

  python -m experiments.preference.frontier runs/preference

reads results.csv, as the sweep's report leaves it, and writes frontier.png beside it.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

REWARD, DISTANCE = "eval/arithmetic/accuracy", "eval/pairs/kl"


def main(argv: Sequence[str] | None = None) -> int:
  """Draws the picture, and returns the command's code."""
  parser = argparse.ArgumentParser(
    prog="python -m experiments.preference.frontier",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("directory", type=Path, help="of the sweep's figures")
  args = parser.parse_args(argv)
  file = args.directory / "results.csv"
  if not file.is_file():
    print(f"error: there is no {file}; launch.sweep --report writes it", file=sys.stderr)
    return 2
  with file.open() as lines:
    found = read(list(csv.DictReader(lines)))
  draw(found, args.directory / "frontier.png")
  for name, ends in found.items():
    print(f"{name}: accuracy {ends[REWARD][0]:.3f} at a KL of {ends[DISTANCE][0]:.4f}")
  return 0


def read(lines: Sequence[dict[str, str]]) -> dict[str, dict[str, tuple[float, float]]]:
  """`point -> metric -> (mean, half the interval)` of points that tell both; NaN without one."""
  found: dict[str, dict[str, tuple[float, float]]] = {}
  for line in lines:
    if line["metric"] in (REWARD, DISTANCE) and line["mean"]:
      mean, high = float(line["mean"]), float(line["high"] or "nan")
      found.setdefault(line["point"], {})[line["metric"]] = (mean, high - mean)
  return {name: told for name, told in found.items() if len(told) == 2}


def draw(found: dict[str, dict[str, tuple[float, float]]], file: Path) -> None:
  """A point for each, with intervals over seeds."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  drawn, axis = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
  for name, told in found.items():
    (y, dy), (x, dx) = told[REWARD], told[DISTANCE]
    axis.errorbar(x, y, xerr=dx, yerr=dy, marker="o", capsize=2)
    axis.annotate(name, (x, y), textcoords="offset points", xytext=(4, 4))
  axis.set(xlabel="KL from the reference, nats a token", ylabel="verified accuracy")
  drawn.savefig(file, dpi=120)
  pyplot.close(drawn)


if __name__ == "__main__":
  sys.exit(main())
