"""Rows to examples: which columns make a format, and what of a row is learnt.

A row is a dict of columns, named as TRL names them. The first of `FORMATS` whose columns
a row has decides how it is read; columns beyond those (`answer`, `task`, …) are left
alone: `text` with a `label` is to be classified (see `labelled`), without one it is read. Rows of
preferences are read for the objectives that ask for them (see `preferences`).

Axis legend: T tokens of one document.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from research.core import tree
from research.data import chat, labelled
from research.data.examples import BadRow, Example, messages_of, text_of

if TYPE_CHECKING:
  from research.data.tokenizer import Tokenizer

ON_LONG_ROW = ("drop", "truncate", "truncate_start", "split", "stop")


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
  tokens, mask = _encode(chat.encode_messages, tokenizer, messages_of(row, "messages"))
  return _example(tokens, mask if completion_only else [True] * len(tokens))


def _tokenize_completion(
  row: Mapping[str, Any], tokenizer: Tokenizer, completion_only: bool
) -> Example:
  read = text_of if isinstance(row["prompt"], str) else messages_of
  prompt, completion = read(row, "prompt"), read(row, "completion")
  tokens, mask = _encode(chat.encode_completion, tokenizer, prompt, completion)
  return _example(tokens, mask if completion_only else [True] * len(tokens))


def _tokenize_text(row: Mapping[str, Any], tokenizer: Tokenizer, completion_only: bool) -> Example:
  del completion_only  # A text has no prompt: all of it is learnt.
  tokens = _with_eos(tokenizer, text_of(row, "text"))
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
  source, target = (_with_eos(tokenizer, text_of(row, name)) for name in columns)
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
  Format(("tokens", "labels"), labelled.tokenize_words),
  Format(("anchor", "positive"), labelled.tokenize_alike),
  Format(("text", "label"), labelled.tokenize_text),
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
  if {"chosen", "rejected"} <= set(columns):
    hint = "; pairs are for the objectives 'preference' and 'reward'"
  raise BadRow("without its columns", f"columns {columns} fit no format of {known}{hint}")


def tokenize(
  row: Mapping[str, Any], tokenizer: Tokenizer, *, completion_only: bool, words: bool = False
) -> Example:
  """The row as one document, with its end-of-sequence token.

  Args:
    row: columns of one of `FORMATS`.
    tokenizer: the model's.
    completion_only: learn the assistant's turns or the completion only; otherwise all
      tokens. A `text` has no prompt and is learnt whole either way.
    words: number the words of a `text`.

  Raises:
    BadRow: the columns fit no format, hold the wrong type, are refused by the chat
      template, or hold nothing to learn.
    ValueError: the row is of messages and the tokenizer has no chat template.
  """
  example = format_of(columns_of(row)).tokenize(row, tokenizer, completion_only)
  if not example.learns:
    raise BadRow("with nothing to learn", f"none of its {len(example)} tokens is a target")
  return _numbered(example, row, tokenizer) if words else example


def _numbered(example: Example, row: Mapping[str, Any], tokenizer: Tokenizer) -> Example:
  """The example of a `text` with its `words`."""
  _, words = tokenizer.encode_words(text_of(row, "text"))
  words += [-1] * (len(example) - len(words))  # EOS, if the frame has none
  return dataclasses.replace(example, words=np.asarray(words))


def fit(example: Example, length: int, on_long_row: str) -> tuple[Example, ...]:
  """The example as documents of at most `length` tokens.

  `truncate` keeps the first `length` tokens, those that close the text in place of the last of
  them; of several documents, each gets an equal share. `split` cuts into pieces that overlap by one
  token, so that every token is still predicted exactly once; pieces without a token to
  learn are left out.

  Raises:
    BadRow: it is longer than `length` and `on_long_row` is `drop` or `stop`, or what is
      left of it holds nothing to learn.
  """
  if len(example) <= length:
    return (example,)
  if on_long_row == "truncate":
    pieces = [_truncated(example, length)]
  elif on_long_row == "split":
    starts = range(0, len(example) - 1, length - 1)
    pieces = [example[start : start + length] for start in starts]
  else:
    raise BadRow(f"longer than {length} tokens", f"it has {len(example)}")
  pieces = [piece for piece in pieces if piece.learns]
  if not pieces:
    raise BadRow("with nothing to learn", f"its first {length} tokens are all prompt")
  return tuple(pieces)


def _truncated(example: Example, length: int) -> Example:
  parts = example.parts or (len(example),)
  share = length // len(parts)
  kept, start = [], 0
  for size in parts:
    index = np.arange(start, start + size)
    if size > share:
      closing = min(example.closing, share - 1)
      index = np.concatenate([index[: share - closing], index[size - closing :]])
    kept.append(index)
    start += size
  parts = tuple(map(len, kept)) if example.parts else ()
  return dataclasses.replace(example[np.concatenate(kept)], parts=parts)


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
