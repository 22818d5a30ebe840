"""Writes the rows of the experiment: prompts, how they go on, and how the teacher goes on.

  python -m experiments.distillation.rows --text FILE FILE ...
  python -m experiments.distillation.rows

Files of text are cut into pieces at the ends of sentences, in the order of the files; of each piece
the first quarter of the words is the prompt. Without files the pieces are school problems with
their solutions (reasoning-gym's gsm_symbolic, which needs no file). The last pieces are held out.

Three files are written: train.jsonl and written.jsonl, rows of `prompt` and `completion`, in the
second of which the teacher has gone on; and held_out.jsonl, whole pieces as `text`. The teacher's
file is gone on with where it was left.

Exit codes: 0 done, 2 something asked for cannot be.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments.distillation.config import DATA, LENGTH, TEACHER
from research import generate
from research.core import command

WORDS = 180  # of a piece, about: some 235 tokens
TRAIN, HELD_OUT = 300, 60  # pieces
PROMPT_SHARE = 0.25  # of a piece's words
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def main(argv: Sequence[str] | None = None) -> int:
  """Writes what is missing, and returns the command's code."""
  args = _arguments(list(sys.argv[1:] if argv is None else argv))
  try:
    rows = of_texts(args.text) if args.text else of_problems()
    write(rows, args.output)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  flags = [f"--model={TEACHER}", f"--input={args.output}/train.jsonl", "--text"]
  flags += [f"--output={args.output}/written.jsonl", "--temperature=0.7", "--seed=0"]
  return generate.main([*flags, f"--max-new-tokens={round((1 - PROMPT_SHARE) * LENGTH)}"])


def _arguments(argv: list[str]) -> argparse.Namespace:
  parser = command.parser("experiments.distillation.rows", __doc__)
  parser.add_argument("--text", type=Path, nargs="+", default=[], metavar="FILE", help="UTF-8 text")
  parser.add_argument(
    "--output", type=Path, default=Path(DATA), metavar="DIR", help="where the rows go (%(default)s)"
  )
  return parser.parse_args(argv)


def of_texts(files: Sequence[Path]) -> list[dict[str, str]]:
  """Rows of `TRAIN + HELD_OUT` pieces, evenly spread over all that the files hold.

  Raises:
    ValueError: a file is not UTF-8, or there are too few pieces.
  """
  found = [_row(piece) for file in files for piece in pieces(_read(file))]
  count = TRAIN + HELD_OUT
  if len(found) < count:
    raise ValueError(
      f"the files hold {len(found)} pieces of some {WORDS} words, and the experiment needs {count}"
    )
  return [found[i * len(found) // count] for i in range(count)]


def _read(file: Path) -> str:
  try:
    return file.read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise ValueError(f"{file} is not UTF-8: {error}") from error


def pieces(text: str) -> Iterator[str]:
  """Whole sentences, of `WORDS` words or the first sentence's end after them; no shorter rest."""
  words: list[str] = []
  for sentence in _SENTENCE_END.split(text):
    words += sentence.split()
    if len(words) >= WORDS:
      yield " ".join(words)
      words = []


def _row(piece: str) -> dict[str, str]:
  words = piece.split(" ")
  at = round(PROMPT_SHARE * len(words))
  return {"prompt": " ".join(words[:at]), "completion": " " + " ".join(words[at:])}


def of_problems() -> list[dict[str, str]]:
  """Rows of reasoning-gym's school problems with their solutions, all different."""
  # Not as a source of research.data, which asks tasks for more problems than this one can list.
  import reasoning_gym

  count = TRAIN + HELD_OUT
  found: dict[str, str] = {}
  for problem in reasoning_gym.create_dataset("gsm_symbolic", seed=0, size=2 * count):
    solution = problem["metadata"]["answer_cot"]
    found.setdefault(f"Question: {problem['question']}\nAnswer:", f" {solution}")
  rows = [{"prompt": prompt, "completion": completion} for prompt, completion in found.items()]
  return rows[:count]


def write(rows: Sequence[Mapping[str, str]], directory: Path) -> None:
  """The files of all rows, of which the last `HELD_OUT` are not trained on.

  Raises:
    ValueError: the directory holds other rows, of which the teacher may have written.
  """
  kept, held_out = rows[:-HELD_OUT], rows[-HELD_OUT:]
  texts = [{"text": row["prompt"] + row["completion"]} for row in held_out]
  directory.mkdir(parents=True, exist_ok=True)
  for name, part in (("train", kept), ("held_out", texts)):
    file = directory / f"{name}.jsonl"
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
    if file.exists() and file.read_text(encoding="utf-8") != content:
      raise ValueError(f"{file} holds other rows; remove the directory, or give another --output")
    file.write_text(content, encoding="utf-8")


if __name__ == "__main__":
  sys.exit(main())
