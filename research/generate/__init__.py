"""Writes with a model, an adapter or a run: one prompt, a chat, or a file of prompts.

  python -m research.generate --model=smollm2-135m-instruct --prompt "What is a monad?"
  python -m research.generate --run=runs/quickstart --chat
  python -m research.generate --run=runs/quickstart --input=in.jsonl --output=out.jsonl
  python -m research.generate --model=smollm2-135m-instruct --benchmark --batch-size=8

Several adapters are named, --adapter NAME=DIR, and rows of a file name theirs in a column
`adapter`; --use names that of a prompt, a chat or rows that name none, which otherwise have the
base's answer. A run with adapters of each task has them by the tasks' names.

A prompt is a user's message where the model has a chat template, and a text to go on with where
it has none or with --text. In a chat, Ctrl-C ends an answer, /reset forgets the conversation,
/adapter NAME changes who answers, and /exit or Ctrl-D leaves. Rows of a file have `messages` or
`prompt` (a text, or messages); they are written with `completion`, or with `completions` where
--samples is above 1. A file that was begun is gone on with, row after row.

With --choice nothing is written freely: the answer is the most probable of the texts given. With
--score rows have their `completion`, whose tokens' log-probabilities are told. With --benchmark
nothing is shown but how fast it writes.

Exit codes: 0 done, 2 something asked for cannot be.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from research.core import command
from research.generate import chat, rows
from research.generate.writer import Writer
from research.loop import subject as subject_lib
from research.loop import writing


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command with these arguments (by default the process's), and returns its code."""
  args = _arguments(list(sys.argv[1:] if argv is None else argv))
  return command.run(lambda: _generate(args), traceback=args.traceback)


def _arguments(argv: list[str]) -> argparse.Namespace:
  parser = command.parser("research.generate", __doc__)
  subject_lib.add_arguments(parser, "what writes")
  parser.add_argument("--use", metavar="NAME", help="which of the named adapters writes")
  what = parser.add_argument_group("what about")
  what.add_argument("--prompt", metavar="TEXT", help="one prompt")
  what.add_argument("--chat", action="store_true", help="a conversation at the terminal")
  what.add_argument("--input", type=Path, metavar="FILE", help="a JSONL file of prompts")
  what.add_argument("--output", type=Path, metavar="FILE", help="where --input's rows go")
  what.add_argument("--system", metavar="TEXT", help="a system message ahead of prompt or chat")
  what.add_argument("--text", action="store_true", help="prompts are texts, not messages")
  what.add_argument(
    "--choice", action="append", default=[], metavar="TEXT", help="a possible answer; repeatable"
  )
  what.add_argument("--score", action="store_true", help="score the completions of --input's rows")
  what.add_argument(
    "--choose-by", choices=("sum", "mean"), default="sum", help="of its tokens' log-probs (sum)"
  )
  what.add_argument("--log-probs", action="store_true", help="tell those of the tokens too")
  writing.add_arguments(parser)
  measure = parser.add_argument_group("--benchmark")
  measure.add_argument(
    "--benchmark",
    action="store_true",
    help="latency and throughput of --batch-size random prompts at a time, as a table and, with "
    "--output, as JSON; with --continuous completions are of unequal lengths",
  )
  measure.add_argument("--prompt-tokens", type=int, default=64, metavar="N", help="(64)")
  measure.add_argument("--requests", type=int, metavar="N", help="prompts (two batches)")
  parser.add_argument("--traceback", action="store_true", help="on an error, where it was found")
  args = subject_lib.parse(parser, argv)
  if sum((args.prompt is not None, args.chat, args.input is not None, args.benchmark)) != 1:
    parser.error("give one of --prompt, --chat, --input and --benchmark")
  if bool(args.input) != bool(args.output) and not args.benchmark:
    parser.error("--input and --output go together")
  if args.choice and (args.chat or args.samples > 1 or args.stop):
    parser.error("--choice takes no --chat, --samples or --stop")
  if args.score and (not args.input or args.choice or args.samples > 1 or args.stop):
    parser.error("--score takes --input, and no --choice, --samples or --stop")
  writing.check_arguments(parser, args)
  if args.method and (args.chat or args.choice or args.score):
    parser.error(f"{args.method} takes no --chat, --choice or --score")
  if args.method == "--continuous" and not (args.input or args.benchmark):
    parser.error("--continuous is for many prompts: --input or --benchmark")
  if args.benchmark:
    if args.method in ("--beams", "--penalty-alpha"):
      parser.error(f"--benchmark takes no {args.method}")
    if args.stop or args.samples > 1 or args.choice or args.score or args.system or args.text:
      parser.error("--benchmark takes no --stop, --samples, --choice, --score, --system or --text")
  args.log_probs |= args.score
  if args.cache and (args.chat or args.choice or args.score):
    parser.error("--cache takes no --chat, --choice or --score")
  if args.chat and (args.samples > 1 or args.text or args.log_probs):
    parser.error("--chat takes no --samples, --text or --log-probs")
  return args


def _generate(args: argparse.Namespace) -> int:
  writer = Writer(args)
  if args.benchmark:
    _benchmark(writer)
  elif args.chat:
    chat.converse(writer)
  elif args.input:
    rows.fill(writer, args.input, args.output)
  else:
    _prompt(writer, args.prompt)
  return 0


def _benchmark(writer: Writer) -> None:
  from research.generation import benchmark

  args = writer.args
  report = benchmark.measure(
    writer.subject.model,
    writer.subject.variables,
    writer.sampler,
    batch_size=args.batch_size,
    prompt_tokens=args.prompt_tokens,
    new_tokens=args.max_new_tokens,
    requests=2 * args.batch_size if args.requests is None else args.requests,
    draft=writer.draft,
    draft_tokens=writing.draft_tokens(args),
    continuous=args.continuous,
    cache=writing.cache(args),
    seed=args.seed,
  )
  print(f"{writer.subject.name}\n\n{report.table()}")
  if args.output:
    args.output.parent.mkdir(parents=True, exist_ok=True)
    told = {"name": writer.subject.name, **dataclasses.asdict(report)}
    args.output.write_text(json.dumps(told, indent=1) + "\n")
    print(f"\nsaved {args.output}")


def _prompt(writer: Writer, prompt: str) -> None:
  args = writer.args
  plain = args.samples == 1 and not (args.log_probs or args.choice or args.method or args.cache)
  if plain and writer.streams:
    for piece in writer.pieces(writer.stream(), prompt):
      print(piece, end="", flush=True)
    print()
    return
  found = writer.choose([prompt]) if args.choice else writer.complete([prompt])
  for number, sample in enumerate(found[0]):
    print(f"--- {number + 1}\n{sample['text']}" if args.samples > 1 else sample["text"])
    if "log_probs" in sample:
      print(f"log-probabilities: {sample['log_probs']}")
