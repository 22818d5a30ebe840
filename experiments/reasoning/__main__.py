"""Answers problems by several strategies, and tells accuracy beside what each has cost.

  python -m experiments.reasoning
  python -m experiments.reasoning --strategies "plain,vote"
  python -m experiments.reasoning --size=20 --directory=runs/reasoning_small

A strategy that is complete is not done again. Table and plot are of what was asked for: votes of
fewer answers are counted among those of `vote`, and every other strategy stands beside the vote
that writes as many tokens, or the next more.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.reasoning.config import MODEL, SIZE, STRATEGIES, VOTE, VOTES, evaluator
from research import evals
from research.core import cache, command
from research.evals import bootstrap
from research.evals.scorers import SCORERS
from research.io.checkpoint import write_json
from research.reasoning import Sample
from research.reasoning.votes import elect

_HEADER = (
  "| strategy | accuracy | 95 % | tokens written | tokens read | calls | vote of as many tokens |"
  " above it | 95 % |"
)


def main() -> int:
  """Measures what is missing, and tells what is there."""
  args = _arguments()
  return command.run(lambda: _measure(args))


def _measure(args: argparse.Namespace) -> int:
  from research.loop import subject as subject_lib

  args.directory.mkdir(parents=True, exist_ok=True)
  cache.keep_compiled()
  subject, rows = None, []
  for name in args.strategies:
    file = args.directory / f"{name.replace(' ', '_')}.json"
    if not file.exists():
      subject = subject or subject_lib.load_model(MODEL, "bfloat16")
      (measure,) = evals.build([evaluator(name, args.size)])
      started = time.perf_counter()
      result = measure(subject.model, subject.variables, subject.tokenizer)
      write_json(file, {"seconds": time.perf_counter() - started, **result.to_json()})
    rows.append(json.loads(file.read_text()))
    if len(rows[-1]["records"]) != args.size:
      count = len(rows[-1]["records"])
      raise ValueError(f"{file} is of {count} problems, not {args.size}; name another --directory")
    told = table(rows)
    (args.directory / "table.md").write_text(told)
    plot(rows, args.directory / "plot.png")
  print(told)
  return 0


def voted(result: dict[str, Any], count: int) -> dict[str, Any]:
  """The vote of each problem's first `count` answers: what is right, and what it wrote and read."""
  read, records = SCORERS["last_number"].read, []
  for record in result["records"]:
    first = record["samples"][:count]
    samples = [
      Sample(s["completion"], read(s["completion"]), s["length"], (), not s["unfinished"])
      for s in first
    ]
    records.append(
      {
        "correct": first[elect(samples)]["correct"],
        "tokens_written": sum(sample.tokens for sample in samples),
        "tokens_read": record["tokens_read"],
        "calls": 1,
      }
    )
  return {"name": f"{VOTE} of {count}", "records": records}


def table(results: Sequence[dict[str, Any]]) -> str:
  """Markdown: a row a strategy, and one for each number of votes."""
  votes = [voted(r, count) for r in results if r["name"] == VOTE for count in VOTES]
  lines = [_HEADER, "| --- " * 9 + "|"]
  for result in results:
    for row in votes if result["name"] == VOTE else [result]:
      right = [record["correct"] for record in row["records"]]
      low, high = bootstrap.wilson(sum(right), len(right))
      figures = [f"{_mean(row, key):.1f}" for key in ("tokens_written", "tokens_read", "calls")]
      beside = ["", "", ""] if row in votes else _beside(row, votes)
      share = sum(right) / len(right)
      cells = [row["name"], f"{share:.3f}", f"{low:.3f} to {high:.3f}", *figures, *beside]
      lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def _beside(row: dict[str, Any], votes: Sequence[dict[str, Any]]) -> list[str]:
  """The vote of as many tokens, and by how much the strategy is above it, paired by problem."""
  if not votes:
    return ["", "", ""]
  written = _mean(row, "tokens_written")
  enough = [vote for vote in votes if _mean(vote, "tokens_written") >= written]
  vote = enough[0] if enough else votes[-1]
  pairs = [[record["correct"] for record in each["records"]] for each in (row, vote)]
  mean, low, high = bootstrap.paired(*pairs)
  more = "" if enough else ", which is fewer tokens"
  return [f"{vote['name']}{more}", f"{mean:+.3f}", f"{low:+.3f} to {high:+.3f}"]


def _mean(row: dict[str, Any], key: str) -> float:
  return sum(record[key] for record in row["records"]) / len(row["records"])


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
  """Accuracy against tokens written a problem, votes as a line."""
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(7, 4.5))
  for result in results:
    rows = [voted(result, count) for count in VOTES] if result["name"] == VOTE else [result]
    right = [[record["correct"] for record in row["records"]] for row in rows]
    shares = [sum(each) / len(each) for each in right]
    ends = [bootstrap.wilson(sum(each), len(each)) for each in right]
    sizes = [_mean(row, "tokens_written") for row in rows]
    below = [share - low for share, (low, _) in zip(shares, ends, strict=True)]
    above = [high - share for share, (_, high) in zip(shares, ends, strict=True)]
    axes.errorbar(sizes, shares, yerr=[below, above], fmt="o-", capsize=3)
    axes.annotate(
      result["name"],
      (sizes[-1], shares[-1]),
      xytext=(5, 3),
      textcoords="offset points",
      fontsize=7,
    )
  axes.set(xlabel="tokens written a problem", ylabel="accuracy", xscale="log")
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _arguments() -> argparse.Namespace:
  parser = command.parser("experiments.reasoning", __doc__)
  parser.add_argument("--directory", type=Path, default=Path("runs/reasoning"), metavar="DIR")
  parser.add_argument("--size", type=int, default=SIZE, metavar="N", help="problems (%(default)s)")
  parser.add_argument(
    "--strategies",
    type=lambda names: [name.strip() for name in names.split(",")],
    default=list(STRATEGIES),
    help=f"which of {', '.join(STRATEGIES)}; by default all",
  )
  args = parser.parse_args()
  for name in args.strategies:
    if name not in STRATEGIES:
      parser.error(f"there is no strategy {name!r}; there are {', '.join(STRATEGIES)}")
  return args


if __name__ == "__main__":
  raise SystemExit(main())
