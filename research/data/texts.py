"""The texts of a row: what is read of it where only words count, and every string that it holds.

A row's texts are in `COLUMNS` alone, and of messages they are the contents: what a row may have
beside them (`answer`, `id`, a message's `tool_calls` or `reasoning_content`, the columns that
templates have rendered) is none. What must not stay anywhere is looked for in all `strings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Columns that hold a text, messages, or a text's words, in the order in which they are read.
COLUMNS = (
  "text",
  "text_pair",
  "tokens",
  "anchor",
  "positive",
  "negative",
  "prompt",
  "completion",
  "chosen",
  "rejected",
  "messages",
)
_WORDS = "tokens"


def of(row: Mapping[str, Any]) -> list[str]:
  """The texts of those of `COLUMNS` that the row has; words are one text, with spaces between."""
  found: list[str] = []
  for name in COLUMNS:
    value = row.get(name)
    if name == _WORDS:
      words = [word for word in value if isinstance(word, str)] if isinstance(value, list) else []
      found += [" ".join(words)] if words else []
    else:
      found += _texts(value)
  return found


def joined(row: Mapping[str, Any]) -> str:
  """The texts of a row as one, each a paragraph of its own."""
  return "\n\n".join(of(row))


def strings(value: Any) -> Iterator[str]:
  """All strings in a row, or in what a column holds, however deep; keys are none."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, Mapping | list | tuple):
    for item in value.values() if isinstance(value, Mapping) else value:
      yield from strings(item)


def changed(value: Any, change: Callable[[str], str]) -> Any:
  """A row, or what a column holds, with `change` of each of its `strings` in place of it."""
  if isinstance(value, str):
    return change(value)
  if isinstance(value, Mapping):
    return {name: changed(item, change) for name, item in value.items()}
  if isinstance(value, list | tuple):  # which are one in JSON
    return [changed(item, change) for item in value]
  return value


def _texts(value: Any) -> Iterator[str]:
  """A text, or the contents of messages."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, list):  # of messages
    for message in value:
      if isinstance(message, Mapping):
        yield from _contents(message)
  elif isinstance(value, Mapping):  # messages as TFDS hands them, a list of each field
    yield from _contents(value)


def _contents(message: Mapping[str, Any]) -> Iterator[str]:
  content = message.get("content")
  for part in content if isinstance(content, list) else [content]:
    text = part.get("text") if isinstance(part, Mapping) else part
    if isinstance(text, str):
      yield text
