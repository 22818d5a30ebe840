"""Rows of answers that people judged: which of two is better, or whether one is good.

  [prompt] chosen rejected [margin]   two answers, and by how much the first is better
  prompt completion label             an answer, and whether it is good

Columns are TRL's, strings or lists of messages. Without a prompt both answers are whole texts (or
conversations) and begin with it. What a row gives takes two rows of a batch: the answers of a pair,
or an answer and, after the same prompt, that of another row (`mismatched`).

Axis legend: T tokens of one document.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from research.core import tree
from research.data import chat
from research.data.examples import BadRow, Example, messages_of, text_of

if TYPE_CHECKING:
  from research.data.tokenizer import Tokenizer

Text = str | list[dict[str, Any]]

ROWS = 2  # of a batch, that an example takes


def tokenize_pair(row: Mapping[str, Any], tokenizer: Tokenizer) -> Example:
  """The chosen answer after its prompt, its `rival` the rejected one.

  The prompt is the common prefix of its own tokens and those of both texts, as in TRL.

  Raises:
    BadRow: columns are missing, of the wrong type or seem to be swapped, the two answers are equal,
      or one of them is empty.
    ValueError: the row is of messages and the tokenizer has no chat template.
  """
  _require(row, ("chosen", "rejected"), "pairs have chosen and rejected, with a prompt or whole")
  chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
  if isinstance(chosen, str) != isinstance(rejected, str):
    raise BadRow("of the wrong type", "of 'chosen' and 'rejected' one is a string, one messages")
  if chosen == rejected:
    raise BadRow("whose two answers are equal", f"both are {_shown(chosen)}")
  if row.get("prompt") is None:
    prompt, chosen, rejected = _without_prompt(chosen, rejected)
  else:
    prompt = _prompt(row, chosen)
    if _begins(chosen, prompt) and _begins(rejected, prompt):
      raise BadRow(
        "whose answers repeat the prompt", "chosen and rejected are whole texts: drop 'prompt'"
      )
  for name, answer in (("chosen", chosen), ("rejected", rejected)):
    _require_answer(name, answer)
  tokens, starts = zip(
    *(_encode(tokenizer, prompt, answer) for answer in (chosen, rejected)), strict=True
  )
  if tokens[0] == tokens[1]:
    raise BadRow("whose two answers are equal", "they are the same tokens")
  told = {"margin": _margin(row)}
  good, bad = (_example(ids, min(starts), told) for ids in tokens)
  return dataclasses.replace(good, rival=bad)


def tokenize_judged(row: Mapping[str, Any], tokenizer: Tokenizer) -> Example:
  """The answer after its prompt; `told` has its label, 1.0 if it is good.

  Raises:
    BadRow, ValueError: as `tokenize_pair`.
  """
  _require(row, ("prompt", "completion", "label"), "judged rows have prompt, completion and label")
  label = row["label"]
  if not isinstance(label, bool | int) or label not in (0, 1):
    raise BadRow("of the wrong type", f"column 'label' holds {label!r}, which is not true or false")
  completion = _text(row, "completion")
  prompt = _prompt(row, completion)
  if _begins(completion, prompt):
    raise BadRow("whose answers repeat the prompt", "the completion is the whole text")
  _require_answer("completion", completion)
  tokens, start = _encode(tokenizer, prompt, completion)
  return _example(tokens, start, {"label": float(label)})


def fit(example: Example, length: int, on_long_row: str) -> Example:
  """The example with at most `length` tokens in each row, as TRL's collators cut them.

  `truncate` leaves out the end of answers, `truncate_start` the beginning of prompts.

  Raises:
    BadRow: it is longer and shall be dropped; or of an answer nothing is left, or of two answers
      the same, or `truncate_start` would cut into an answer.
  """
  rows = [row for row in (example, example.rival) if row is not None]
  if max(map(len, rows)) <= length:
    return example
  reason = f"longer than {length} tokens"
  if on_long_row not in ("truncate", "truncate_start"):
    raise BadRow(reason, f"it has {max(map(len, rows))}")
  kept = []
  for row in rows:
    start = prompt_length(row)
    if on_long_row == "truncate_start":
      if len(row) - start >= length:
        raise BadRow(reason, f"an answer has {len(row) - start}, and a prompt is before it")
      kept.append(row[max(0, len(row) - length) :])
    elif start >= length:
      raise BadRow(f"with a prompt that fills {length} tokens", f"its prompt has {start}")
    else:
      kept.append(row[:length])
  if len(kept) == 2 and np.array_equal(kept[0].tokens, kept[1].tokens):
    raise BadRow("whose two answers are equal", f"they are within {length} tokens")
  return dataclasses.replace(kept[0], rival=kept[1] if len(kept) == 2 else None)


def prompt_length(row: Example) -> int:
  """How many of its tokens are before the answer, virtual ones among them."""
  return int(np.argmax(row.weights_mask))


def rows_of(batch: Sequence[Example], length: int) -> list[list[Example]]:
  """The rows of a batch of examples: of each its own row and, after it, its rival's.

  An answer that is judged alone gets for a rival what `mismatched` makes; where it is the only one,
  a row without anything.
  """
  if not all(example.rival for example in batch):
    batch = mismatched(batch, length)
  return [
    row
    for example in batch
    for row in (
      [dataclasses.replace(example, rival=None)],
      [] if example.rival is None else [dataclasses.replace(example.rival, row=example.row)],
    )
  ]


def mismatched(batch: Sequence[Example], length: int) -> list[Example]:
  """Each answer with a rival: the batch's answer before it (the last, for the first), as in TRL.

  Rivals are cut to `length` tokens. There is none for an answer that is the only one.
  """
  if len(batch) < 2:
    return list(batch)
  found = []
  for own, other in zip(batch, [batch[-1], *batch[:-1]], strict=True):
    before, start = prompt_length(own), prompt_length(other)
    mixed = dataclasses.replace(
      own,
      tokens=np.concatenate([own.tokens[:before], other.tokens[start:]])[:length],
      weights_mask=np.concatenate([own.weights_mask[:before], other.weights_mask[start:]])[:length],
    )
    found.append(dataclasses.replace(own, rival=mixed))
  return found


def _require(row: Mapping[str, Any], columns: Sequence[str], rule: str) -> None:
  for name in columns:
    if row.get(name) is None:
      have = sorted(key for key, value in row.items() if value is not None)
      raise BadRow(
        "without its columns", f"{rule}; no {name!r} in {have}{tree.nearest(name, have)}"
      )


def _text(row: Mapping[str, Any], column: str) -> Text:
  return text_of(row, column) if isinstance(row[column], str) else messages_of(row, column)


def _prompt(row: Mapping[str, Any], answer: Text) -> Text:
  """The prompt of an explicit prompt's row, of the answer's kind."""
  prompt = _text(row, "prompt")
  if isinstance(prompt, str) != isinstance(answer, str):
    kinds = ["a string" if isinstance(each, str) else "messages" for each in (prompt, answer)]
    raise BadRow("of the wrong type", f"its prompt is {kinds[0]}, its answers are {kinds[1]}")
  if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
    raise BadRow(
      "whose columns seem to be swapped", f"its prompt ends with the assistant: {_shown(prompt)}"
    )
  return prompt


def _without_prompt(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
  """Prompt and answers of two whole texts, cut where TRL's `extract_prompt` cuts them."""
  pairs = enumerate(zip(chosen, rejected, strict=False))
  at = next((i for i, (a, b) in pairs if a != b), None)
  if at is None:  # one text begins with the other, and the last part of that one is its answer
    at = min(len(chosen), len(rejected)) - 1
  elif isinstance(chosen, str) and at > 0 and chosen[at - 1] == " ":
    at -= 1  # a space goes with the word that follows it
  if not isinstance(chosen, str) and not at:
    raise BadRow("without a prompt", "its two conversations begin with different messages")
  return chosen[:at], chosen[at:], rejected[at:]


def _begins(text: Text, prompt: Text) -> bool:
  """Whether an answer begins with all of a prompt that is not blank."""
  if isinstance(text, str):
    return bool(str(prompt).strip()) and text.startswith(str(prompt))
  return text[: len(prompt)] == prompt


def _require_answer(name: str, answer: Text) -> None:
  if isinstance(answer, str):
    empty = not answer.strip()
  else:
    if all(message["role"] != "assistant" for message in answer):
      raise BadRow("whose columns seem to be swapped", f"{name!r} has no message of the assistant")
    empty = all(
      not str(message.get("content") or "").strip() and not message.get("tool_calls")
      for message in answer
    )
  if empty:
    raise BadRow("with an empty answer", f"column {name!r}: {_shown(answer)}")


def _encode(tokenizer: Tokenizer, prompt: Text, answer: Text) -> tuple[list[int], int]:
  if tokenizer.chat_template is None and not isinstance(prompt, str):
    raise ValueError("rows of messages need a chat template, and the tokenizer has none")
  try:
    return chat.encode_joined(tokenizer, prompt, answer)
  except UnicodeError as error:
    raise BadRow("not UTF-8", str(error)) from error
  except ValueError as error:
    raise BadRow("refused by the chat template", str(error)) from error


def _example(tokens: Sequence[int], start: int, told: Mapping[str, float]) -> Example:
  if start >= len(tokens):
    raise BadRow("with an empty answer", "nothing of it is left behind the prompt")
  ids = np.asarray(tokens, np.int32)
  return Example(ids, np.arange(len(ids)) >= start, told=told)


def _margin(row: Mapping[str, Any]) -> float:
  value = row.get("margin")
  if value is None:
    return 0.0
  if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
    raise BadRow("of the wrong type", f"column 'margin' holds {value!r}, which is no number")
  return float(value)


def _shown(text: Text) -> str:
  shown = repr(text)
  return shown if len(shown) <= 60 else f"{shown[:57]}..."
