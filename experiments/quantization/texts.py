"""Writes the four texts that methods are calibrated by, of public files.

  python -m experiments.quantization.texts --speeches state_union/*.txt --europarl europarl.en \
    --gsm8k train.jsonl --t0 cnn_dailymail_*.jsonl imdb_*.jsonl

README.md says where they come from. Each text is DIRECTORY/NAME.txt, of at most 400,000 characters.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from research.core import command

MOST = 400_000  # characters of a text: some 90,000 tokens, of which 16,384 calibrate


def main() -> int:
  """Writes the files."""
  args = _arguments()
  made = {
    "speeches": _whole(args.speeches),
    "europarl": _whole([args.europarl]),
    "gsm8k": "\n\n".join(f"{row['question']}\n{row['answer']}" for row in _rows(args.gsm8k)),
    # In turns, so that each task is within the first `MOST` characters.
    "t0": "\n\n".join(text for texts in zip(*map(_tasks, args.t0), strict=False) for text in texts),
  }
  args.output.mkdir(parents=True, exist_ok=True)
  for name, text in made.items():
    (args.output / f"{name}.txt").write_text(text[:MOST])
    print(args.output / f"{name}.txt")
  return 0


def _whole(files: list[Path]) -> str:
  return "\n".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)


def _rows(file: Path) -> list[dict[str, str]]:
  return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _tasks(file: Path) -> list[str]:
  return [f"{row['prompt']}\n{row['completion']}" for row in _rows(file)]


def _arguments() -> argparse.Namespace:
  parser = command.parser("experiments.quantization.texts", __doc__)
  parser.add_argument("--speeches", type=Path, nargs="+", required=True, help="plain texts")
  parser.add_argument("--europarl", type=Path, required=True, help="plain text")
  parser.add_argument("--gsm8k", type=Path, required=True, help="lines of question and answer")
  parser.add_argument("--t0", type=Path, nargs="+", required=True, help="prompts and completions")
  parser.add_argument("--output", type=Path, default=Path("runs/data/calibration"))
  return parser.parse_args()


if __name__ == "__main__":
  sys.exit(main())
