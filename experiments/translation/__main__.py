"""Prepares rows and a vocabulary, trains, and draws what came of it: see README.md."""

from __future__ import annotations

import argparse
import html
import json
import sys
from pathlib import Path

from experiments.translation import config as config_lib
from research import prepare, train

HELD_OUT = 300
LONGEST = 20  # words of a sentence
VOCABULARY = 2000


def main() -> int:
  """Runs all of it; what is done already is not done again."""
  parser = argparse.ArgumentParser(prog="python -m experiments.translation", description=__doc__)
  parser.add_argument("--source", type=Path, required=True, help="a sentence a line")
  parser.add_argument("--target", type=Path, required=True, help="their translations")
  parser.add_argument("--directory", default=config_lib.DIRECTORY, help="of rows, run and figures")
  args, overrides = parser.parse_known_args()
  directory = Path(args.directory)
  write_rows(args.source, args.target, directory)
  if not (directory / "tokenizer").is_dir():
    flags = [f"--path={directory}/train.jsonl", f"--tokenizer={directory}/tokenizer"]
    if code := prepare.main([*flags, f"--vocab-size={VOCABULARY}"]):
      return code
  file = Path(config_lib.__file__)
  if code := train.main([f"--config={file}:{directory}", *overrides]):
    return code
  figures = read_figures(directory / "run")
  (directory / "results.md").write_text(table(figures))
  plot(figures, directory / "results.png")
  print(table(figures))
  return 0


def write_rows(source: Path, target: Path, directory: Path) -> None:
  """Rows to train on and, of every k-th pair, to hold out.

  Pairs that occur twice occur once, and those with a longer sentence than `LONGEST` not at all.
  """
  pairs = zip(*(file.read_text().splitlines() for file in (source, target)), strict=True)
  rows = [
    {"prompt": html.unescape(a).strip(), "completion": html.unescape(b).strip()}
    for a, b in dict.fromkeys(pairs)
    if 0 < len(a.split()) <= LONGEST and 0 < len(b.split()) <= LONGEST
  ]
  every = len(rows) // HELD_OUT
  held_out = rows[::every][:HELD_OUT]
  # A sentence of the held-out pairs, on either side, is not trained on.
  seen = {text for row in held_out for text in row.values()}
  kept = [row for row in rows if seen.isdisjoint(row.values())]
  directory.mkdir(parents=True, exist_ok=True)
  for name, part in (("held_out", held_out), ("train", kept)):
    lines = [json.dumps(row, ensure_ascii=False) for row in part]
    (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def read_figures(run: Path) -> list[dict[str, float]]:
  """Held-out loss and BLEU, with BLEU's interval, at every evaluation."""
  figures = []
  for file in sorted((run / "evaluations").glob("*.json"), key=lambda file: int(file.stem)):
    results = {result["name"]: result for result in json.loads(file.read_text())["results"]}
    low, high = results["bleu"]["intervals"]["bleu"]
    found = {"step": int(file.stem), "loss": results["held_out"]["metrics"]["loss"]}
    found |= {"bleu": results["bleu"]["metrics"]["bleu"], "low": low, "high": high}
    figures.append(found)
  return figures


def table(figures: list[dict[str, float]]) -> str:
  """The figures as Markdown."""
  lines = ["| step | held-out loss | BLEU | 95 % interval |", "| --- | --- | --- | --- |"]
  lines += [
    f"| {f['step']} | {f['loss']:.3f} | {f['bleu']:.2f} | [{f['low']:.2f}, {f['high']:.2f}] |"
    for f in figures
  ]
  return "\n".join(lines) + "\n"


def plot(figures: list[dict[str, float]], file: Path) -> None:
  """Both over the steps."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  steps = [f["step"] for f in figures]
  drawn, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
  left.plot(steps, [f["loss"] for f in figures], marker="o")
  left.set(xlabel="step", ylabel="held-out loss, nats a token")
  right.plot(steps, [f["bleu"] for f in figures], marker="o", color="C1")
  right.fill_between(
    steps, [f["low"] for f in figures], [f["high"] for f in figures], alpha=0.2, color="C1"
  )
  right.set(xlabel="step", ylabel="BLEU")
  drawn.savefig(file, dpi=120)


if __name__ == "__main__":
  sys.exit(main())
