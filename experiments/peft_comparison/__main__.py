"""Compares parameter-efficient methods on one task: trains, evaluates, draws table and plot.

  python -m experiments.peft_comparison --text=wikitext2_valid.txt
  python -m experiments.peft_comparison --text=wikitext2_valid.txt --methods "lora r16,ia3,full"
  python -m experiments.peft_comparison --text=wikitext2_valid.txt --part=quality --jobs=15

Each method is tried once at each of its rates; the rate with the best accuracy on the validation
problems is run from two more seeds. That is its quality. Its costs are those of a short run of its
own, with nothing beside it. A run that is complete is not done again, and one that was interrupted
goes on. Table and plot are of what is complete, and of what DIRECTORY/N_steps/figures.json tells of
the rest: quality and costs may come from different machines.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

from experiments.peft_comparison.config import METHODS, VALIDATION
from experiments.peft_comparison.run import FOUND
from research.evals import bootstrap

TEXT_BYTES = 20_000  # of unrelated text, of which the loss is told before and after
COST_STEPS = 12  # of a run that tells what a step costs
PARTS = ("quality", "costs")
LORA = "lora r16"  # that other methods are told beside
_T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # Student's t, two-sided, by degrees of freedom


def main() -> int:
  """Runs what is missing, and tells what is there."""
  args = _arguments()
  directory = args.directory / f"{args.steps}_steps"
  directory.mkdir(parents=True, exist_ok=True)
  text = directory / "text.txt"
  text.write_bytes(args.text.read_bytes()[:TEXT_BYTES].decode(errors="ignore").encode())
  told = directory / "figures.json"
  rows = {row["method"]: row for row in json.loads(told.read_text())} if told.exists() else {}

  def keep(name: str, found: dict[str, Any]) -> None:
    rows[name] = rows.get(name, {"method": name}) | found
    ordered = [rows[method] for method in METHODS if method in rows]
    (directory / "table.md").write_text(table(ordered))
    told.write_text(json.dumps(ordered, indent=2))
    plot([row for row in ordered if "accuracy" in row], directory / "plot.png")

  if "quality" in args.parts:
    base = measured(directory / "base", text)
    with futures.ThreadPoolExecutor(args.jobs) as pool:
      find = functools.partial(quality, directory, text, args, base)
      found = {pool.submit(find, name): name for name in args.methods}
      for done in futures.as_completed(found):
        keep(found[done], done.result())
  if "costs" in args.parts:
    for name in args.methods:
      keep(name, costs(directory, name))
  print((directory / "table.md").read_text())
  return 0


def quality(
  directory: Path, text: Path, args: argparse.Namespace, base: dict[str, Any], name: str
) -> dict[str, Any]:
  """What a method reaches at the best of its rates, with `args.seeds` seeds."""
  tried = {rate: trained(directory, text, args, name, rate, 0) for rate in METHODS[name].rates}
  best = max(tried, key=lambda rate: accuracy(tried[rate], test=False))
  runs = [tried[best]]
  runs += [trained(directory, text, args, name, best, seed) for seed in range(1, args.seeds)]
  return figures(best, runs, base)


def costs(directory: Path, name: str) -> dict[str, Any]:
  """What a step of a method costs."""
  run = directory / f"{name.replace(' ', '_')}_cost"
  rate = METHODS[name].rates[0]
  found = measured(run, None, f"--method={name}", f"--rate={rate}", f"--steps={COST_STEPS}")
  return {"peak_gb": found["peak_bytes"] / 1e9, "tokens_per_second": found["tokens_per_second"]}


def trained(
  directory: Path, text: Path, args: argparse.Namespace, name: str, rate: float, seed: int
) -> dict[str, Any]:
  """What the run of a method, rate and seed found."""
  run = directory / f"{name.replace(' ', '_')}_{rate:g}_{seed}"
  flags = [f"--method={name}", f"--rate={rate}", f"--seed={seed}", f"--steps={args.steps}"]
  found = measured(run, text, *flags, aside=args.jobs > 1)
  return found | json.loads((run / "results.json").read_text())


def measured(
  directory: Path, text: Path | None, *flags: str, aside: bool = False
) -> dict[str, Any]:
  """What the run in `directory` found; it is started, or goes on, if it is not complete.

  aside: what it says is written to its output.txt.
  """
  if not (directory / FOUND).exists():
    print(directory, flush=True)
    command = [sys.executable, "-m", "experiments.peft_comparison.run", *flags]
    command += [f"--directory={directory}", *([f"--text={text}"] if text else [])]
    with contextlib.ExitStack() as stack:
      output = None
      if aside:
        directory.mkdir(parents=True, exist_ok=True)
        output = stack.enter_context((directory / "output.txt").open("w"))
      code = subprocess.run(command, stdout=output, stderr=output).returncode
    if code:
      raise SystemExit(f"error: the run in {directory} ended with {code}; what it said tells why")
  return json.loads((directory / FOUND).read_text())


def accuracy(run: dict[str, Any], *, test: bool) -> float:
  """Of the problems that choose a rate, or of the others."""
  correct = [record["correct"] for record in run["verifiable"]["records"]]
  return statistics.mean(correct[VALIDATION:] if test else correct[:VALIDATION])


def figures(rate: float, runs: Sequence[dict[str, Any]], base: dict[str, Any]) -> dict[str, Any]:
  """The quality in a row of the table.

  The interval of the accuracy is over problems, with each problem's share of right seeds as its
  value (`shares`); `spread` is half the t interval over seeds, infinite for a single one.
  """
  each = zip(*(run["verifiable"]["records"][VALIDATION:] for run in runs), strict=True)
  shares = [statistics.mean(record["correct"] for record in records) for records in each]
  by_seed = [accuracy(run, test=True) for run in runs]
  deviation = statistics.stdev(by_seed) if len(runs) > 1 else math.inf
  before = base["text"]["metrics"]["nll_per_token"]
  return {
    "rate": rate,
    "seeds": len(runs),
    "accuracy": statistics.mean(shares),
    "shares": shares,
    "interval": list(bootstrap.interval(shares)),
    "spread": _T_95[max(1, len(runs) - 1)] * deviation / math.sqrt(len(runs)),
    "base_accuracy": accuracy(base, test=True),
    "parameters": runs[0]["trainable_parameters"],
    "share": runs[0]["trainable_parameters"] / runs[0]["parameters"],
    "adapter_kb": (runs[0]["adapter_bytes"] or 0) / 1e3 or None,
    "forgetting": statistics.mean(run["text"]["metrics"]["nll_per_token"] for run in runs) - before,
  }


def table(rows: Sequence[dict[str, Any]]) -> str:
  """The figures as Markdown."""
  lines = [
    "| method | rate | trained | share | accuracy | 95 % over problems | ± over seeds | less full's"
    " | share of full's | less LoRA's | adapter kB | loss of other text | tokens/s | peak GB |",
    "| --- " * 14 + "|",
  ]
  before = next((row["base_accuracy"] for row in rows if "accuracy" in row), None)
  if before is not None:
    lines.append(f"| (before) | | | | {before:.3f} |" + " |" * 9)
  shares = {row["method"]: row["shares"] for row in rows if "shares" in row}
  for row in rows:
    cells = [row["method"], *_quality_cells(row, shares), *_cost_cells(row)]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def _quality_cells(row: dict[str, Any], shares: Mapping[str, Sequence[float]]) -> list[str]:
  """shares: by method, what it reaches at each problem, by which two are told in pairs."""
  if "accuracy" not in row:
    return [""] * 11
  low, high = row["interval"]
  return [
    f"{row['rate']:g}",
    f"{row['parameters']:,}",
    f"{row['share']:.3%}",
    f"{row['accuracy']:.3f}",
    f"[{low:.3f}, {high:.3f}]",
    f"{row['spread']:.3f}",
    _less(row, shares, "full"),
    _ratio(row, shares, "full"),
    _less(row, shares, LORA),
    "" if row["adapter_kb"] is None else f"{row['adapter_kb']:,.0f}",
    f"{row['forgetting']:+.3f}",
  ]


def _less(row: dict[str, Any], shares: Mapping[str, Sequence[float]], other: str) -> str:
  """The difference of a row's accuracy from another method's, and its interval."""
  if other not in shares or row["method"] == other:
    return ""
  apart, low, high = bootstrap.paired(row["shares"], shares[other])
  return f"{apart:+.3f} [{low:+.3f}, {high:+.3f}]"


def _ratio(row: dict[str, Any], shares: Mapping[str, Sequence[float]], other: str) -> str:
  """The share of another method's accuracy that a row's is, and its interval."""
  if other not in shares or row["method"] == other:
    return ""
  both = np.asarray([row["shares"], shares[other]])
  low, high = bootstrap.interval_of(lambda means: means[0] / means[1], both)
  return f"{both[0].mean() / both[1].mean():.0%} [{low:.0%}, {high:.0%}]"


def _cost_cells(row: dict[str, Any]) -> list[str]:
  if "peak_gb" not in row:
    return [""] * 2
  return [f"{row['tokens_per_second']:,.0f}", f"{row['peak_gb']:.2f}"]


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
  """Accuracy over trained parameters, and over what was forgotten."""
  if not rows:
    return
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  drawn, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained", sharey=True)
  for axis, key, label in (
    (axes[0], "parameters", "trained parameters"),
    (axes[1], "forgetting", "change of the loss of other text, nats a token"),
  ):
    for number, row in enumerate(rows):
      low, high = row["interval"]
      y = row["accuracy"]
      marker = "os^"[number // 10 % 3]  # colours repeat after ten
      error = [[y - low], [high - y]]
      axis.errorbar(row[key], y, error, fmt=marker, capsize=2, label=row["method"])
    axis.axhline(rows[0]["base_accuracy"], color="grey", linestyle=":")
    axis.set(xlabel=label)
  axes[0].set(xscale="log", ylabel="accuracy on held-out problems")
  axes[1].set_xscale("symlog", linthresh=0.1)  # some forget a hundred times what others do
  axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
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
  parser.add_argument("--part", choices=PARTS, help="of the figures (both)")
  parser.add_argument("--jobs", type=int, default=1, help="methods at once, of their quality (1)")
  args = parser.parse_args()
  args.parts = (args.part,) if args.part else PARTS
  if args.jobs < 1:
    parser.error(f"--jobs is {args.jobs}; it is 1 or more")
  args.methods = [name.strip() for name in args.methods.split(",")]
  unknown = [name for name in args.methods if name not in METHODS]
  if unknown:
    parser.error(f"there is no method {unknown[0]!r}; there are {', '.join(METHODS)}")
  return args


if __name__ == "__main__":
  sys.exit(main())
