"""The texts of a row, whatever columns it has: what is read of it where only words count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# Columns that hold a text or messages, in the order in which they are read.
COLUMNS = (
  "text",
  "text_pair",
  "anchor",
  "positive",
  "negative",
  "prompt",
  "completion",
  "chosen",
  "rejected",
  "messages",
)


def of(row: Mapping[str, Any]) -> list[str]:
  """The strings of those of `COLUMNS` that the row has, and the contents of messages."""
  found: list[str] = []

  def take(text: str) -> str:
    found.append(text)
    return text

  changed(row, take)
  return found


def joined(row: Mapping[str, Any]) -> str:
  """The texts of a row as one, each a paragraph of its own."""
  return "\n\n".join(of(row))


def changed(row: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
  """The row with `change` of each of its texts in place of it."""
  return dict(row) | {name: _changed(row[name], change) for name in COLUMNS if name in row}


def _changed(value: Any, change: Callable[[str], str]) -> Any:
  if isinstance(value, str):
    return change(value)
  if isinstance(value, list):  # of messages
    return [_with_content(item, change) if isinstance(item, Mapping) else item for item in value]
  if isinstance(value, Mapping):  # messages as TFDS hands them, a list of each field
    return _with_content(value, change)
  return value


def _with_content(message: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
  if "content" not in message:
    return dict(message)
  content = message["content"]
  if isinstance(content, list):
    return dict(message) | {"content": [_part(part, change) for part in content]}
  return dict(message) | {"content": _part(content, change)}


def _part(part: Any, change: Callable[[str], str]) -> Any:
  """A content, or a part of one: a text, or a mapping that has one."""
  if isinstance(part, str):
    return change(part)
  if isinstance(part, Mapping) and isinstance(part.get("text"), str):
    return dict(part) | {"text": change(part["text"])}
  return part
