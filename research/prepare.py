"""`python -m research.prepare --path data.jsonl`: a local file to ArrayRecord, ahead of time.

Training prepares what it needs by itself; this does it before, for instance once on a
shared disk, and shows what is in the file. With `--tokenizer DIR` it also learns a vocabulary from
the file's texts, for a model that is trained from random weights.

With `--chains OUT.jsonl` the file is what `research.evaluate` wrote, or a run's evaluation, by an
evaluator `verifiable` with a strategy: its right answers become rows of OUT.jsonl to train on
(rejection sampling), which is then prepared. With `--critiques OUT.jsonl` and the strategy
`critique` they are of critiques that led from a wrong answer to a right one, or that let a right
one stand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.core import command
from research.data import chains, critiques, formats, prepare


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m research.prepare",
    description="Prepares a JSONL or text file as ArrayRecord; a second run finds it there.",
  )
  parser.add_argument("--path", required=True, help="the file")
  parser.add_argument(
    "--format",
    choices=prepare.FORMATS,
    help="by default jsonl for .jsonl and .json, text for anything else",
  )
  parser.add_argument(
    "--split-by",
    choices=prepare.SPLITS,
    default="document",
    help="what a row of a text file is: all of it (the default), a paragraph or a line",
  )
  parser.add_argument("--name", help="begins the directory's name (default: the file's)")
  parser.add_argument(
    "--cache", help="where to (default: datasets in $RESEARCH_CACHE or ~/.cache/research)"
  )
  group = parser.add_argument_group("rows of an evaluation")
  which = group.add_mutually_exclusive_group()
  which.add_argument("--chains", type=Path, metavar="FILE", help="write its right answers there")
  which.add_argument(
    "--critiques", type=Path, metavar="FILE", help="write its right critiques and revisions there"
  )
  group.add_argument(
    "--per-problem", type=int, default=4, metavar="N", help="different ones at most (default: 4)"
  )
  group = parser.add_argument_group("a vocabulary of the file's texts")
  group.add_argument("--tokenizer", metavar="DIR", help="train one and write it there")
  group.add_argument("--vocab-size", type=int, default=8192, help="tokens (default: 8192)")
  group.add_argument(
    "--vocab-kind",
    choices=("unigram", "bpe"),
    default="unigram",
    help="T5's likeliest pieces (the default), or merged pairs of bytes",
  )
  group.add_argument(
    "--sentinels", type=int, default=100, help="tokens <extra_id_N> at its end (default: 100)"
  )
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status: 1, with one line, if the file is no use."""
  args = _arguments(argv)
  return command.run(lambda: _prepare(args), {OSError: 1, ValueError: 1})


def _prepare(args: argparse.Namespace) -> int:
  if args.chains or args.critiques:
    args.path = str(_of_evaluation(args))
  by_suffix = "jsonl" if Path(args.path).suffix in (".jsonl", ".json") else "text"
  prepared = prepare.prepare(
    args.path,
    file_format=args.format or by_suffix,
    split_by=args.split_by,
    name=args.name,
    cache=args.cache,
  )
  tokenizer = _train_tokenizer(args, prepared) if args.tokenizer else None
  print(f"{'prepared' if prepared.fresh else 'already there'}: {prepared.directory}")
  print(f"rows: {prepared.rows:,}")
  for columns, count in sorted(prepared.columns.items(), key=lambda item: -item[1]):
    print(f"columns in {count:,} of them: {', '.join(columns)}{_misfit(columns)}")
  print(f"bad rows: {prepared.report.count():,}")
  if prepared.report:
    print(prepared.report)
  if tokenizer is not None:
    print(f"tokenizer: {args.tokenizer}, {tokenizer.vocab_size:,} tokens")
  return 0


def _of_evaluation(args: argparse.Namespace) -> Path:
  """Writes the rows that `--chains` or `--critiques` asks for, and returns their file."""
  try:
    report = json.loads(Path(args.path).read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f"{args.path} is not the file of an evaluation: {error}") from error
  target: Path = args.chains or args.critiques
  if args.chains:
    answers = chains.right(report, args.per_problem)
    rows, without = answers.rows, answers.without
    told = f"right answers: {len(rows):,} of {answers.problems:,} problems in {target}"
  else:
    kept = critiques.right(report, args.per_problem)
    rows, without = kept.rows, kept.without
    told = f"corrected: {kept.corrected:,}, confirmed: {kept.confirmed:,}, of {kept.problems:,}"
    told += f" problems, as {len(rows):,} rows in {target}"
  target.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
  target.write_text("".join(lines), encoding="utf-8")
  print(told)
  print(f"problems without one: {without:,}")
  return target


def _train_tokenizer(args: argparse.Namespace, prepared: prepare.Prepared) -> Any:
  from research.data import texts, vocabulary

  rows = (json.loads(record["row"]) for record in prepare.records(prepared))
  found = (text for row in rows for text in texts.of(row))
  tokenizer = vocabulary.train(
    found, size=args.vocab_size, kind=args.vocab_kind, sentinels=args.sentinels
  )
  tokenizer.save(args.tokenizer)
  return tokenizer


def _misfit(columns: Sequence[str]) -> str:
  """What to say of columns that cannot be trained on."""
  try:
    formats.format_of(columns)
  except formats.BadRow as error:
    return f" (not for training: {error.detail})"
  return ""


if __name__ == "__main__":
  sys.exit(main())
