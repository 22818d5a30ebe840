"""Rows to learn from by a model's own feedback: answers revised by principles, or compared.

  python -m research.constitution revise --model M --input prompts.jsonl --output revised.jsonl
  python -m research.constitution compare --model M --input prompts.jsonl --output pairs.jsonl

This is Constitutional AI (Bai et al. 2022, arXiv:2212.08073). A row of the input has `prompt` or
`messages`. `revise` writes rows of `prompt` and `completion`, the answer after its last revision,
for supervised tuning (the objective "causal"), with all that came before it under `revisions`.
`compare` writes rows of `prompt`, `chosen` and `rejected`, for a reward model or DPO (the
objectives "reward" and "preference"), with how sure the judge was under `preference`. Answers that
are empty or were cut off at --max-new-tokens, and two equal ones, teach nothing: their rows say so
under `dropped`, and training leaves them out. Rows that are there are not done again.

--principles is a JSONL file, each line a `critique`, a `revision` and a `comparison`, which are put
to the model as they are; by default those of research.reasoning.constitution.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.core import command
from research.io import lines
from research.loop import subject as subject_lib

_PART = 32  # rows that are written at a time
# Why rows are there that nothing is learnt from.
_DROPPED = {
  "revise": "an answer that is empty or was cut off",
  "compare": "two equal answers, or one that is empty or was cut off",
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = command.parser("research.constitution", __doc__)
  parser.add_argument("what", choices=("revise", "compare"))
  subject_lib.add_arguments(parser, "the model that answers")
  group = parser.add_argument_group("rows")
  group.add_argument("--input", type=Path, required=True, metavar="FILE", help="JSONL of prompts")
  group.add_argument(
    "--output", type=Path, required=True, metavar="FILE", help="JSONL; gone on with"
  )
  group.add_argument("--principles", type=Path, metavar="FILE", help="JSONL")
  group.add_argument("--rounds", type=int, help="of critique and revision (default: 1)")
  group.add_argument("--judge", metavar="MODEL", help="compares (default: the model that answers)")
  group = parser.add_argument_group("how it writes")
  group.add_argument("--max-new-tokens", type=int, default=256, help="default: 256")
  group.add_argument("--temperature", type=float, default=1.0, help="default: 1")
  group.add_argument("--seed", type=int, default=0, help="default: 0")
  group.add_argument("--batch-size", type=int, default=32, help="rows at a time (default: 32)")
  parser.add_argument("--traceback", action="store_true", help="of errors, too")
  args = subject_lib.parse(parser, sys.argv[1:] if argv is None else argv)
  if args.rounds is not None and args.what != "revise":
    parser.error("--rounds is for revise")
  args.rounds = 1 if args.rounds is None else args.rounds
  if args.rounds < 1 or args.max_new_tokens < 1 or args.batch_size < 1 or args.temperature <= 0:
    parser.error("--rounds, --max-new-tokens and --batch-size are from 1, --temperature above 0")
  if args.judge and args.what != "compare":
    parser.error("--judge is for compare")
  return command.run(lambda: _write(args), traceback=args.traceback)


def _write(args: argparse.Namespace) -> int:
  import tqdm

  from research.core import cache
  from research.reasoning import constitution

  principles = constitution.Constitution(constitution.PRINCIPLES, args.seed)
  if args.principles:
    principles = constitution.read(lines.read(args.principles), args.seed)
  rows = lines.read(args.input)
  asks = [_ask(row, index, args.input) for index, row in enumerate(rows)]
  done = lines.complete(args.output, most=len(rows))
  cache.keep_compiled()
  session = _session(args, subject_lib.require_one(subject_lib.load(args)))
  judge = None
  if args.judge:
    judge = _session(args, subject_lib.load_model(args.judge, args.dtype or "bfloat16"))
  args.output.parent.mkdir(parents=True, exist_ok=True)
  with (
    args.output.open("a", encoding="utf-8") as file,
    tqdm.tqdm(total=len(rows), unit="row", initial=done) as bar,
  ):
    for start in range(done, len(rows), _PART):
      some = slice(start, start + _PART)
      if args.what == "revise":
        revised = constitution.revise(
          session, asks[some], principles, rounds=args.rounds, first=start
        )
        told = [_revised(ask.problem, one) for ask, one in zip(asks[some], revised, strict=True)]
      else:
        compared = constitution.compare(session, asks[some], principles, judge=judge, first=start)
        told = [_compared(ask.problem, one) for ask, one in zip(asks[some], compared, strict=True)]
      file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in told)
      file.flush()
      bar.update(len(told))
  print(f"{len(rows) - done:,} rows written; {len(rows):,} are in {args.output}")
  dropped = sum("dropped" in row for row in lines.read(args.output))
  print(f"{dropped:,} of them have {_DROPPED[args.what]}; training leaves them out")
  return 0


def _ask(row: Mapping[str, Any], index: int, path: Path) -> Any:
  from research.data import prompts
  from research.data.examples import BadRow
  from research.reasoning import Ask

  try:
    prompt = prompts.prompt_of(row)
  except BadRow as error:
    raise ValueError(f"{path} row {index} is {error}") from error
  return Ask(prompt, prompt)


def _session(args: argparse.Namespace, subject: subject_lib.Subject) -> Any:
  from research import generation, reasoning

  return reasoning.Session(
    subject.model,
    subject.variables,
    subject.tokenizer,
    generation.Sampler(args.temperature),
    args.max_new_tokens,
    batch_size=args.batch_size,
    seed=args.seed,
  )


def _revised(prompt: Any, one: Any) -> dict[str, Any]:
  """The last answer, or why there is none, and all that came before it."""
  from research.data import prompts

  revisions = [{"answer": one.first}, *one.rounds]
  if not one.finished or not one.text.strip():
    return {"prompt": prompt, "dropped": _DROPPED["revise"], "revisions": revisions}
  completion = prompts.completion(prompt, one.text)
  return {"prompt": prompt, "completion": completion, "revisions": revisions}


def _compared(prompt: Any, one: Any) -> dict[str, Any]:
  """A pair, or why there is none: there is a line for each row of the input."""
  from research.data import prompts

  if one is None:
    return {"prompt": prompt, "dropped": _DROPPED["compare"]}
  chosen, rejected = (prompts.completion(prompt, text) for text in (one.chosen, one.rejected))
  told = {"preference": one.preference, "principle": one.principle}
  return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **told}


if __name__ == "__main__":
  sys.exit(main())
