"""Compares parameter-efficient methods on one task: trains, evaluates, draws table and plot.

  python -m experiments.peft_comparison --text=wikitext2_valid.txt
  python -m experiments.peft_comparison --text=wikitext2_valid.txt --methods "lora r16,ia3,full"

Each method is tried once at each of its rates; the rate with the best accuracy on the validation
problems is run from two more seeds. A run that is complete is not done again, and one that was
interrupted goes on. Table and plot are of what is complete, and of what
DIRECTORY/N_steps/figures.json tells of other methods.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.peft_comparison.config import METHODS, VALIDATION
from experiments.peft_comparison.run import FOUND
from research.evals import bootstrap

TEXT_BYTES = 20_000  # of unrelated text, of which the loss is told before and after
_T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # Student's t, two-sided, by degrees of freedom


def main() -> int:
  """Runs what is missing, and tells what is there."""
  args = _arguments()
  directory = args.directory / f"{args.steps}_steps"
  directory.mkdir(parents=True, exist_ok=True)
  text = directory / "text.txt"
  text.write_bytes(args.text.read_bytes()[:TEXT_BYTES].decode(errors="ignore").encode())
  base = measured(directory / "base", text)
  told = directory / "figures.json"  # of methods that are measured elsewhere, too
  rows = {row["method"]: row for row in json.loads(told.read_text())} if told.exists() else {}
  for name in args.methods:
    tried = {rate: trained(directory, text, args, name, rate, 0) for rate in METHODS[name].rates}
    best = max(tried, key=lambda rate: accuracy(tried[rate], test=False))
    runs = [tried[best]]
    runs += [trained(directory, text, args, name, best, seed) for seed in range(1, args.seeds)]
    rows[name] = figures(name, best, runs, base)
    ordered = [rows[method] for method in METHODS if method in rows]
    (directory / "table.md").write_text(table(ordered))
    told.write_text(json.dumps(ordered, indent=2))
    plot(ordered, directory / "plot.png")
  print((directory / "table.md").read_text())
  return 0


def trained(
  directory: Path, text: Path, args: argparse.Namespace, name: str, rate: float, seed: int
) -> dict[str, Any]:
  """What the run of a method, rate and seed found."""
  run = directory / f"{name.replace(' ', '_')}_{rate:g}_{seed}"
  flags = [f"--method={name}", f"--rate={rate}", f"--seed={seed}", f"--steps={args.steps}"]
  return measured(run, text, *flags) | json.loads((run / "results.json").read_text())


def measured(directory: Path, text: Path, *flags: str) -> dict[str, Any]:
  """What the run in `directory` found; it is started, or goes on, if it is not complete."""
  if not (directory / FOUND).exists():
    print(directory, flush=True)
    command = [sys.executable, "-m", "experiments.peft_comparison.run", *flags]
    subprocess.run([*command, f"--directory={directory}", f"--text={text}"], check=True)
  return json.loads((directory / FOUND).read_text())


def accuracy(run: dict[str, Any], *, test: bool) -> float:
  """Of the problems that choose a rate, or of the others."""
  correct = [record["correct"] for record in run["verifiable"]["records"]]
  return statistics.mean(correct[VALIDATION:] if test else correct[:VALIDATION])


def figures(
  name: str, rate: float, runs: Sequence[dict[str, Any]], base: dict[str, Any]
) -> dict[str, Any]:
  """A row of the table.

  The interval of the accuracy is over problems, with each problem's share of right seeds as its
  value; `spread` is half the t interval over seeds, infinite for a single one.
  """
  each = zip(*(run["verifiable"]["records"][VALIDATION:] for run in runs), strict=True)
  shares = [statistics.mean(record["correct"] for record in records) for records in each]
  by_seed = [accuracy(run, test=True) for run in runs]
  deviation = statistics.stdev(by_seed) if len(runs) > 1 else math.inf
  before = base["text"]["metrics"]["nll_per_token"]
  return {
    "method": name,
    "rate": rate,
    "seeds": len(runs),
    "accuracy": statistics.mean(shares),
    "interval": list(bootstrap.interval(shares)),
    "spread": _T_95[max(1, len(runs) - 1)] * deviation / math.sqrt(len(runs)),
    "base_accuracy": accuracy(base, test=True),
    "parameters": runs[0]["trainable_parameters"],
    "share": runs[0]["trainable_parameters"] / runs[0]["parameters"],
    "peak_gb": statistics.median(run["peak_bytes"] for run in runs) / 1e9,
    "tokens_per_second": statistics.median(run["tokens_per_second"] for run in runs),
    "adapter_kb": (runs[0]["adapter_bytes"] or 0) / 1e3 or None,
    "forgetting": statistics.mean(run["text"]["metrics"]["nll_per_token"] for run in runs) - before,
  }


def table(rows: Sequence[dict[str, Any]]) -> str:
  """The figures as Markdown."""
  lines = [
    "| method | rate | trained | share | accuracy | 95 % over problems | ± over seeds"
    " | tokens/s | peak GB | adapter kB | loss of other text |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  if rows:
    lines.append(f"| (before) | | | | {rows[0]['base_accuracy']:.3f} | | | | | | |")
  for row in rows:
    low, high = row["interval"]
    size = "" if row["adapter_kb"] is None else f"{row['adapter_kb']:,.0f}"
    lines.append(
      f"| {row['method']} | {row['rate']:g} | {row['parameters']:,} | {row['share']:.3%}"
      f" | {row['accuracy']:.3f} | [{low:.3f}, {high:.3f}] | {row['spread']:.3f}"
      f" | {row['tokens_per_second']:.0f} | {row['peak_gb']:.2f} | {size}"
      f" | {row['forgetting']:+.3f} |"
    )
  return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
  """Accuracy over trained parameters, and over what was forgotten."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  drawn, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
  for axis, key, label in (
    (axes[0], "parameters", "trained parameters"),
    (axes[1], "forgetting", "change of the loss of other text, nats a token"),
  ):
    for row in rows:
      low, high = row["interval"]
      y = row["accuracy"]
      axis.errorbar(row[key], y, yerr=[[y - low], [high - y]], fmt="o", capsize=2)
      axis.annotate(row["method"], (row[key], y), xytext=(4, 3), textcoords="offset points")
    axis.axhline(rows[0]["base_accuracy"], color="grey", linestyle=":")
    axis.set(xlabel=label)
  axes[0].set(xscale="log", ylabel="accuracy on held-out problems")
  drawn.savefig(file, dpi=120)
  pyplot.close(drawn)


def _arguments() -> argparse.Namespace:
  summary, _, more = (__doc__ or "").partition("\n")
  parser = argparse.ArgumentParser(
    prog="python -m experiments.peft_comparison",
    description=summary,
    epilog=more,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--text", type=Path, required=True, help="a file of unrelated text")
  parser.add_argument("--methods", default=",".join(METHODS), help="some of: " + ", ".join(METHODS))
  parser.add_argument("--steps", type=int, default=60, help="of 4 x 256 tokens (60)")
  parser.add_argument("--seeds", type=int, default=3, help="of the best rate (3)")
  parser.add_argument("--directory", type=Path, default=Path("runs/peft_comparison"))
  args = parser.parse_args()
  args.methods = [name.strip() for name in args.methods.split(",")]
  unknown = [name for name in args.methods if name not in METHODS]
  if unknown:
    parser.error(f"there is no method {unknown[0]!r}; there are {', '.join(METHODS)}")
  return args


if __name__ == "__main__":
  sys.exit(main())
