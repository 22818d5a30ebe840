"""Rows of a JSONL file with their completions, written to another, which is gone on with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.generate.writer import Writer
from research.io import lines

_PART = 64  # rows of a file that are written at a time
_QUEUE = 1024  # and with --continuous, which must not wait for the last rows of each part


def fill(writer: Writer, source: Path, target: Path) -> None:
  """Writes the rows of `source` with their completions behind those that `target` holds.

  Raises:
    FileNotFoundError: there is no `source`.
    ValueError: a row lacks what is asked about, or names no adapter that there is; `target` holds
      more rows; or as the methods of `Writer`.
  """
  import tqdm

  args = writer.args
  rows = lines.read(source)
  prompts = [_row_prompt(row, index) for index, row in enumerate(rows)]
  texts = [_row_completion(row, index) for index, row in enumerate(rows)] if args.score else []
  adapters = _row_adapters(rows, writer)
  done = lines.complete(target, most=len(rows))
  target.parent.mkdir(parents=True, exist_ok=True)
  total = len(rows) * args.samples
  with target.open("a", encoding="utf-8") as file, tqdm.tqdm(total=total, unit="completion") as bar:
    bar.update(done * args.samples)
    size = _QUEUE if args.continuous else _PART
    for start in range(done, len(rows), size):
      part = slice(start, start + size)
      if args.score:
        found = writer.score(prompts[part], texts[part], adapters[part])
      elif args.choice:
        found = writer.choose(prompts[part], adapters[part])
      else:
        found = writer.complete(prompts[part], adapters[part], start, bar.update)
      if args.score or args.choice:
        bar.update(len(found))
      for row, samples in zip(rows[part], found, strict=True):
        file.write(json.dumps(_filled(row, samples, args), ensure_ascii=False) + "\n")
      file.flush()


def _row_prompt(row: Mapping[str, Any], index: int) -> Any:
  prompt = row.get("prompt", row.get("messages"))
  if prompt is None:
    raise ValueError(f"row {index} has neither `prompt` nor `messages`: {', '.join(row)}")
  return prompt


def _row_adapters(rows: Sequence[Mapping[str, Any]], writer: Writer) -> list[str | None]:
  """The name of each row's adapter: its own, or that of --use."""
  names = [row.get("adapter") or writer.args.use for row in rows]
  for index, name in enumerate(names):
    if name is not None and writer.subject.bank is None:
      raise ValueError(f"row {index} names the adapter {name!r}: give it as --adapter {name}=DIR")
    try:
      writer.which([name])
    except ValueError as error:
      raise ValueError(f"row {index}: {error}") from error
  return names


def _row_completion(row: Mapping[str, Any], index: int) -> str:
  if not isinstance(row.get("completion"), str):
    raise ValueError(f"row {index} has no `completion`, a text to score: {', '.join(row)}")
  return row["completion"]


def _filled(row: Mapping[str, Any], samples: list[dict[str, Any]], args: Any) -> dict[str, Any]:
  if args.samples > 1:
    return {**row, "completions": samples}
  filled = {**row, "completion": samples[0]["text"]}
  if args.log_probs:
    filled["log_probs"] = samples[0]["log_probs"]
  return filled
