"""Writes the pairs of the experiment: of problems the model's own answers, right against wrong.

  python -m experiments.preference.pairs
  python -m experiments.preference.pairs --public=FILE --output=runs/data/preference_public

The model answers sums and products (reasoning-gym) several times, and a verifier says which answers
are right. Problems with answers of both kinds give pairs. With --public no model is asked: the file
is a JSON list of `conversations` with a `chosen` and a `rejected` answer (`from` and `value`), as
LLaMA-Factory has them, of which every fifth is held out.

Three files are written: train.jsonl and held_out.jsonl, rows of `prompt`, `chosen` and `rejected`;
and judged.jsonl, each answer of train.jsonl on its own, with a `label`.

Exit codes: 0 done, 2 something asked for cannot be.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.quickstart import TASKS
from experiments.preference.config import DATA, MODEL, NEW_TOKENS
from research.core import command

PROBLEMS = {"train": 240, "test": 80}
SAMPLES = 8  # answers of a problem
PAIRS_PER_PROBLEM = 2
LONGEST_PROMPT = 600  # characters of a public row's, so that there is room for its answers
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the files, and returns the command's code."""
  args = _arguments(list(sys.argv[1:] if argv is None else argv))
  try:
    if args.public:
      rows = public(json.loads(args.public.read_text(encoding="utf-8")))
      train, held_out = [row for i, row in enumerate(rows) if i % 5], rows[::5]
    else:
      train, held_out = (sampled(split) for split in ("train", "test"))
    write(train, held_out, args.output)
  except (ValueError, OSError, RuntimeError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"{args.output}: {len(train)} pairs, and {len(held_out)} that are held out")
  return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
  parser = command.parser("experiments.preference.pairs", __doc__)
  parser.add_argument("--public", type=Path, metavar="FILE", help="pairs of people's preferences")
  parser.add_argument(
    "--output", type=Path, default=Path(DATA), metavar="DIR", help="where they go (%(default)s)"
  )
  return parser.parse_args(argv)


def sampled(split: str) -> list[Row]:
  """Pairs of the model's answers to the problems of a split."""
  import tqdm

  from research import generation
  from research.core import cache
  from research.data import chat, sources
  from research.loop import subject

  cache.keep_compiled()
  problems = {"name": "reasoning_gym", "tasks": TASKS, "size": PROBLEMS[split], "split": split}
  source = sources.build({**problems, "seed": 2})
  rows = [source[index] for index in range(len(source))]
  loaded = subject.load_model(MODEL, "bfloat16")
  with tqdm.tqdm(total=len(rows) * SAMPLES, desc=split, unit="answer") as bar:
    written = generation.generate(
      loaded.model,
      loaded.variables,
      [chat.encode_prompt(loaded.tokenizer, row["prompt"]) for row in rows],
      generation.Sampler(temperature=1.0),
      max_new_tokens=NEW_TOKENS,
      eos_ids=loaded.tokenizer.eos_ids,
      samples=SAMPLES,
      seed=0,
      batch_size=64,
      progress=bar.update,
    )
  answers: list[list[str]] = [[] for _ in rows]
  for each in written:
    if each.finished:  # what was cut off is no whole answer, right or wrong
      answers[each.prompt].append(loaded.tokenizer.decode(each.tokens).strip())
  return [pair for row, own in zip(rows, answers, strict=True) for pair in of_problem(row, own)]


def of_problem(problem: Mapping[str, Any], answers: Sequence[str]) -> list[Row]:
  """Right answers with wrong ones, in the order in which they were written; each is used once."""
  from research.evals.scorers import SCORERS

  right, wrong = [], []
  for text in dict.fromkeys(answers):
    if text:
      (right if SCORERS["last_number"](text, problem).correct else wrong).append(text)
  return [
    _pair(problem["prompt"], good, bad)
    for good, bad in list(zip(right, wrong, strict=False))[:PAIRS_PER_PROBLEM]
  ]


def public(found: Any) -> list[Row]:
  """Pairs of a public file, but for those with a long prompt or with equal or empty answers.

  Raises:
    ValueError: it is no list of such rows, or nothing is left of it.
  """
  rows = []
  for number, each in enumerate(found if isinstance(found, list) else [found]):
    try:
      prompt = [
        {"role": ROLES[said["from"]], "content": said["value"]} for said in each["conversations"]
      ]
      good, bad = (each[name]["value"].strip() for name in ("chosen", "rejected"))
    except (KeyError, TypeError) as error:
      raise ValueError(
        f"row {number} has no {error}: rows have `conversations`, a `chosen` and a `rejected`"
        f" answer, all with `from` ({', '.join(ROLES)}) and `value`"
      ) from error
    short = sum(len(said["content"]) for said in prompt) <= LONGEST_PROMPT
    if short and good and bad and good != bad:
      rows.append(_pair(prompt, good, bad))
  if not rows:
    raise ValueError(f"no row has a prompt of at most {LONGEST_PROMPT} characters and two answers")
  return rows


def _pair(prompt: Any, good: str, bad: str) -> Row:
  sides = {"chosen": good, "rejected": bad}
  told = {name: [{"role": "assistant", "content": text}] for name, text in sides.items()}
  return {"prompt": prompt, **told}


def judged(pairs: Sequence[Row]) -> list[Row]:
  """Both answers of each pair as rows of their own."""
  return [
    {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}
    for pair in pairs
    for name in ("chosen", "rejected")
  ]


def write(train: Sequence[Row], held_out: Sequence[Row], directory: Path) -> None:
  """The three files.

  Raises:
    ValueError: there are no pairs of one kind.
  """
  if not train or not held_out:
    raise ValueError(f"{len(train)} pairs to train on and {len(held_out)} held out are too few")
  directory.mkdir(parents=True, exist_ok=True)
  parts = {"train": train, "held_out": held_out, "judged": judged(train)}
  for name, rows in parts.items():
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
  sys.exit(main())
