"""Rows to examples: which columns make a format, and what of a row is learnt.

A row is a dict of columns, named as TRL names them. The first of `FORMATS` whose columns
a row has decides how it is read; columns beyond those (`answer`, `task`, …) are left
alone. A format that gives something other than one token sequence (`prompt`, `chosen`,
`rejected`) joins by one more entry there.

Axis legend: T tokens of one document.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from research.core import tree
from research.data import chat

if TYPE_CHECKING:
  from research.data.tokenizer import Tokenizer

ON_LONG_ROW = ("drop", "truncate", "split", "stop")


class BadRow(ValueError):
  """A row that cannot be used: `reason` is what it is counted under, `detail` its own case."""

  def __init__(self, reason: str, detail: str):
    super().__init__(f"{reason}: {detail}")
    self.reason = reason
    self.detail = detail


@dataclasses.dataclass(frozen=True)
class Example:
  """One document, or a pair of a source and a target. Invariant: the first two are `[T]`.

  Attributes:
    tokens: int32.
    weights_mask: bool, whether the token is learnt when it is the next one. The first
      token of a document is nobody's next, so its entry has no effect.
    prefix: so many of the first tokens see each other both ways.
    task: the number of its part of a mixture.
    source: int32, what an encoder reads, of a pair; `tokens` then are the decoder's, of which the
      first is its start token.
  """

  tokens: np.ndarray
  weights_mask: np.ndarray
  prefix: int = 0
  task: int = 0
  source: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.tokens)

  def __getitem__(self, part: slice) -> Example:
    return Example(self.tokens[part], self.weights_mask[part])

  @property
  def learns(self) -> bool:
    """Whether any token of it carries loss."""
    return bool(self.weights_mask[1:].any())


class Report:
  """What became of rows that could not be used as they are, by source and reason.

  A row counts once a reason however often it is met, so that epochs and resumed runs do
  not inflate the figures. Safe to fill in one thread and print in another.
  """

  def __init__(self) -> None:
    self._rows: dict[tuple[str, str], dict[int, str]] = {}
    self._lock = threading.Lock()

  def add(self, source: str, reason: str, index: int, detail: str) -> None:
    """Counts row `index` of `source` under `reason`."""
    with self._lock:
      self._rows.setdefault((source, reason), {}).setdefault(index, detail)

  def merge(self, other: Report) -> None:
    """Adds everything that `other` counted."""
    for entry in other.to_json():
      for index, detail in entry["rows"]:
        self.add(entry["source"], entry["reason"], index, detail)

  def count(self, reason: str | None = None) -> int:
    """The number of rows counted under `reason`, or under any."""
    with self._lock:
      return sum(len(rows) for (_, why), rows in self._rows.items() if reason in (None, why))

  def __bool__(self) -> bool:
    return self.count() > 0

  def to_json(self) -> list[dict[str, Any]]:
    """`[{"source", "reason", "rows": [[index, detail], …]}, …]`, indices ascending."""
    with self._lock:
      return [
        {"source": source, "reason": reason, "rows": [list(row) for row in sorted(rows.items())]}
        for (source, reason), rows in sorted(self._rows.items())
      ]

  @classmethod
  def from_json(cls, entries: Iterable[Mapping[str, Any]]) -> Report:
    """The report that `to_json` wrote."""
    report = cls()
    for entry in entries:
      for index, detail in entry["rows"]:
        report.add(entry["source"], entry["reason"], index, detail)
    return report

  def __str__(self) -> str:
    """A line a reason with its count, its first rows (from 0) and the first one's case."""
    lines = []
    for entry in self.to_json():
      rows = entry["rows"]
      first = ", ".join(str(index) for index, _ in rows[:5]) + (", …" if len(rows) > 5 else "")
      noun = "row" if len(rows) == 1 else "rows"
      lines.append(
        f"{entry['source']}: {len(rows):,} {noun} {entry['reason']} ({noun} {first}): {rows[0][1]}"
      )
    return "\n".join(lines)


def _text_of(row: Mapping[str, Any], column: str) -> str:
  value = row[column]
  if not isinstance(value, str):
    raise BadRow("of the wrong type", f"column {column!r} is {type(value).__name__}, not a string")
  return value


def _messages_of(row: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
  """The messages as a list of dicts; TFDS hands a sequence of dicts as a dict of lists."""
  value = row[column]
  if isinstance(value, Mapping) and all(isinstance(v, list) for v in value.values()):
    value = [dict(zip(value, fields, strict=True)) for fields in zip(*value.values(), strict=True)]
  if not isinstance(value, list) or not value:
    raise BadRow("of the wrong type", f"column {column!r} is not a list of messages")
  for message in value:
    if not isinstance(message, Mapping) or "role" not in message:
      raise BadRow(
        "of the wrong type", f"column {column!r} holds {message!r}; a message has role and content"
      )
  return [dict(message) for message in value]


def _example(tokens: Iterable[int], mask: Iterable[Any]) -> Example:
  return Example(np.asarray(list(tokens), np.int32), np.asarray(list(mask), bool))


def _encode(encode: Callable[..., Any], tokenizer: Tokenizer, *parts: Any) -> tuple[Any, Any]:
  """`encode(tokenizer, *parts)` of `chat`, what it refuses being the row's fault."""
  if tokenizer.chat_template is None and not isinstance(parts[0], str):
    raise ValueError("rows of messages need a chat template, and the tokenizer has none")
  try:
    return encode(tokenizer, *parts)
  except UnicodeError as error:
    raise BadRow("not UTF-8", str(error)) from error
  except ValueError as error:
    raise BadRow("refused by the chat template", str(error)) from error


def _tokenize_messages(
  row: Mapping[str, Any], tokenizer: Tokenizer, completion_only: bool
) -> Example:
  tokens, mask = _encode(chat.encode_messages, tokenizer, _messages_of(row, "messages"))
  return _example(tokens, mask if completion_only else [True] * len(tokens))


def _tokenize_completion(
  row: Mapping[str, Any], tokenizer: Tokenizer, completion_only: bool
) -> Example:
  read = _text_of if isinstance(row["prompt"], str) else _messages_of
  prompt, completion = read(row, "prompt"), read(row, "completion")
  tokens, mask = _encode(chat.encode_completion, tokenizer, prompt, completion)
  return _example(tokens, mask if completion_only else [True] * len(tokens))


def _tokenize_text(row: Mapping[str, Any], tokenizer: Tokenizer, completion_only: bool) -> Example:
  del completion_only  # A text has no prompt: all of it is learnt.
  tokens = _with_eos(tokenizer, _text_of(row, "text"))
  return _example(tokens, [True] * len(tokens))


def tokenize_pair(row: Mapping[str, Any], tokenizer: Tokenizer, *, start_id: int) -> Example:
  """The row's `prompt` as a source and its `completion` as a target, each ended by EOS.

  Args:
    row: both columns are strings.
    tokenizer: the model's; it frames either side as it frames a text.
    start_id: the token that the decoder begins with.

  Raises:
    BadRow: a column is missing or no string.
  """
  columns = ("prompt", "completion")
  if missing := [name for name in columns if row.get(name) is None]:
    raise BadRow(
      "without its columns",
      f"an encoder-decoder's rows have prompt and completion, or a corruption; no {missing[0]!r}"
      f" in {list(columns_of(row))}{tree.nearest(missing[0], row)}",
    )
  source, target = (_with_eos(tokenizer, _text_of(row, name)) for name in columns)
  example = _example([start_id, *target], [True] * (1 + len(target)))
  return dataclasses.replace(example, source=np.asarray(source, np.int32))


def _with_eos(tokenizer: Tokenizer, text: str) -> list[int]:
  tokens = list(tokenizer.encode(text, add_special=True))
  if tokenizer.eos_ids and (not tokens or tokens[-1] not in tokenizer.eos_ids):
    tokens.append(tokenizer.eos_ids[0])
  return tokens


@dataclasses.dataclass(frozen=True)
class Format:
  """Rows that have all of `columns`, and how to tokenize one."""

  columns: tuple[str, ...]
  tokenize: Callable[[Mapping[str, Any], Tokenizer, bool], Example]


FORMATS = (
  Format(("messages",), _tokenize_messages),
  Format(("prompt", "completion"), _tokenize_completion),
  Format(("text",), _tokenize_text),
)


def columns_of(row: Mapping[str, Any]) -> tuple[str, ...]:
  """The names of the columns that hold something (a null is a column that is not there)."""
  return tuple(sorted(name for name, value in row.items() if value is not None))


def format_of(columns: Iterable[str]) -> Format:
  """The first format whose columns are all in `columns`.

  Raises:
    BadRow: none is; it lists the columns and the formats.
  """
  columns = sorted(columns)
  for fmt in FORMATS:
    if set(fmt.columns) <= set(columns):
      return fmt
  known = " | ".join(" + ".join(fmt.columns) for fmt in FORMATS)
  missing = [name for fmt in FORMATS for name in fmt.columns if name not in columns]
  hint = next((found for name in columns if (found := tree.nearest(name, missing))), "")
  raise BadRow("without its columns", f"columns {columns} fit no format of {known}{hint}")


def tokenize(row: Mapping[str, Any], tokenizer: Tokenizer, *, completion_only: bool) -> Example:
  """The row as one document, with its end-of-sequence token.

  Args:
    row: columns of one of `FORMATS`.
    tokenizer: the model's.
    completion_only: learn the assistant's turns or the completion only; otherwise all
      tokens. A `text` has no prompt and is learnt whole either way.

  Raises:
    BadRow: the columns fit no format, hold the wrong type, are refused by the chat
      template, or hold nothing to learn.
    ValueError: the row is of messages and the tokenizer has no chat template.
  """
  example = format_of(columns_of(row)).tokenize(row, tokenizer, completion_only)
  if not example.learns:
    raise BadRow("with nothing to learn", f"none of its {len(example)} tokens is a target")
  return example


def fit(example: Example, length: int, on_long_row: str) -> tuple[Example, ...]:
  """The example as documents of at most `length` tokens.

  `truncate` keeps the first `length` tokens. `split` cuts into pieces that overlap by one
  token, so that every token is still predicted exactly once; pieces without a token to
  learn are left out.

  Raises:
    BadRow: it is longer than `length` and `on_long_row` is `drop` or `stop`, or what is
      left of it holds nothing to learn.
  """
  if len(example) <= length:
    return (example,)
  if on_long_row == "truncate":
    pieces = [example[:length]]
  elif on_long_row == "split":
    starts = range(0, len(example) - 1, length - 1)
    pieces = [example[start : start + length] for start in starts]
  else:
    raise BadRow(f"longer than {length} tokens", f"it has {len(example)}")
  pieces = [piece for piece in pieces if piece.learns]
  if not pieces:
    raise BadRow("with nothing to learn", f"its first {length} tokens are all prompt")
  return tuple(pieces)


def fit_pair(example: Example, length: int, target_length: int, on_long_row: str) -> Example:
  """The pair with at most `length` tokens of source and `target_length` of target.

  Raises:
    BadRow: it is longer, and `on_long_row` is not `truncate`.
  """
  assert example.source is not None
  if len(example.source) <= length and len(example) <= target_length:
    return example
  if on_long_row != "truncate":
    raise BadRow(
      f"longer than {length} or {target_length} tokens",
      f"its source has {len(example.source)} and its target {len(example)}",
    )
  return dataclasses.replace(
    example,
    tokens=example.tokens[:target_length],
    weights_mask=example.weights_mask[:target_length],
    source=example.source[:length],
  )
