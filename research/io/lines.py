"""JSON lines that a command reads, writes and, when it was killed, goes on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
  """The objects of a file, blank lines left out.

  Raises:
    FileNotFoundError: there is no file.
    ValueError: a line, which the message names, is no JSON object.
  """
  rows = []
  # Not by `splitlines`, which also cuts at U+2028 and others, as they stand in JSON's strings.
  for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
    if line.strip():
      try:
        row = json.loads(line)
      except json.JSONDecodeError as error:
        raise ValueError(f"{path} line {number} is not JSON: {error}") from error
      if not isinstance(row, dict):
        raise ValueError(f"{path} line {number} is {type(row).__name__}, and not an object")
      rows.append(row)
  return rows


def complete(path: Path, *, most: int) -> int:
  """How many lines a file holds, 0 if there is none; half a line, of a killed process, is cut off.

  Raises:
    ValueError: it holds more than `most`.
  """
  if not path.exists():
    return 0
  data = path.read_bytes()
  whole = data[: data.rfind(b"\n") + 1]
  if len(whole) != len(data):
    path.write_bytes(whole)
  done = whole.count(b"\n")
  if done > most:
    raise ValueError(f"{path} holds {done} rows, more than the input's {most}; name another")
  return done
