"""Rows that ask, and are answered by whoever is trained.

  prompt ...     a string to go on with, or messages that end with a user's
  messages ...   the same, under that name

Other columns (`answer`, `task`) are for those who judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from research.core import tree
from research.data import chat
from research.data.examples import BadRow, Example, messages_of, text_of

if TYPE_CHECKING:
  from research.data.tokenizer import Tokenizer


def prompt_of(row: Mapping[str, Any]) -> str | list[dict[str, Any]]:
  """What the row asks.

  Raises:
    BadRow: it asks nothing, or its messages end with an answer.
  """
  column = "prompt" if row.get("prompt") is not None else "messages"
  if row.get(column) is None:
    raise BadRow(
      "without its columns", f"no 'prompt' and no 'messages'{tree.nearest('prompt', row)}"
    )
  if isinstance(row[column], str):
    return text_of(row, column)
  messages = messages_of(row, column)
  if messages[-1]["role"] == "assistant":
    raise BadRow("of messages that end with an answer", f"leave the last one of {column!r} out")
  return messages


def encode(tokenizer: Tokenizer, prompt: str | list[dict[str, Any]]) -> list[int]:
  """The tokens of a prompt, up to where an answer begins.

  Raises:
    ValueError: it is of messages and the tokenizer has no chat template.
  """
  if isinstance(prompt, str):
    return chat.encode_text(tokenizer, prompt)
  return chat.encode_prompt(tokenizer, prompt)


def completion(prompt: str | list[dict[str, Any]], text: str) -> str | list[dict[str, str]]:
  """An answer as a completion of the prompt's kind: a string, or an assistant's message."""
  return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def then(
  prompt: str | list[dict[str, Any]], answer: str, question: str
) -> str | list[dict[str, Any]]:
  """The prompt, its answer and another question, of the same kind."""
  if isinstance(prompt, str):
    return f"{prompt}{answer}\n\n{question}\n"
  return [*prompt, *completion(prompt, answer), {"role": "user", "content": question}]


def tokenize(row: Mapping[str, Any], tokenizer: Tokenizer) -> Example:
  """The prompt alone, of which nothing is learnt.

  Raises:
    BadRow, ValueError: as `prompt_of` and `encode`.
  """
  prompt = prompt_of(row)
  if not isinstance(prompt, str) and tokenizer.chat_template is None:
    raise ValueError("rows of messages need a chat template, and the tokenizer has none")
  try:
    tokens = np.asarray(encode(tokenizer, prompt), np.int32)
  except UnicodeError as error:
    raise BadRow("not UTF-8", str(error)) from error
  except ValueError as error:
    raise BadRow("refused by the chat template", str(error)) from error
  if not len(tokens):
    raise BadRow("with an empty prompt", "it has no tokens")
  return Example(tokens, np.zeros(len(tokens), bool))


def fit(example: Example, length: int, on_long_row: str) -> Example:
  """The example, if a row of `length` tokens has room behind it; or the end of it.

  Raises:
    BadRow: it has not, and is not to lose its beginning (`on_long_row="truncate_start"`).
  """
  if len(example) < length:
    return example
  if on_long_row != "truncate_start":
    raise BadRow(f"longer than {length - 1} tokens", f"it has {len(example)}")
  return example[len(example) - length + 1 :]
