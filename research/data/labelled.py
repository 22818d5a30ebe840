"""Rows whose answer is no text: the class of a text, classes of words, texts that are alike.

  text [text_pair] label         a document (or two as one) and its class
  tokens labels                  words and the class of each; a label of -100 is none
  anchor positive [negative]     texts, of which the first two are alike and the third is not

Classes are numbers from 0. Texts are framed as the tokenizer frames them.

Axis legend: T tokens of one document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from research.data.examples import BadRow, Example, text_of

if TYPE_CHECKING:
  from research.data.tokenizer import Tokenizer

NO_LABEL = -100  # transformers' number for a token that has none


def tokenize_text(row: Mapping[str, Any], tokenizer: Tokenizer, completion_only: bool) -> Example:
  """A text, or a pair of texts, whose class is predicted at the first token."""
  del completion_only  # Nothing of the text is learnt.
  pair = None if row.get("text_pair") is None else text_of(row, "text_pair")
  encoding = tokenizer.backend.encode(text_of(row, "text"), pair)
  labels = np.zeros(len(encoding.ids), np.int32)
  labels[:1] = _class(row["label"], "label")
  return _example(encoding, labels, np.arange(len(labels)) == 0)


def tokenize_words(row: Mapping[str, Any], tokenizer: Tokenizer, completion_only: bool) -> Example:
  """Words whose classes are predicted at the first token of each."""
  del completion_only
  words, labels = row["tokens"], row["labels"]
  if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
    raise BadRow("of the wrong type", "column 'tokens' is not a list of strings")
  if not isinstance(labels, list) or len(labels) != len(words):
    raise BadRow("of the wrong type", f"column 'labels' is not a list of {len(words)} classes")
  encoding = tokenizer.backend.encode(words, is_pretokenized=True)
  number = np.asarray([-1 if word is None else word for word in encoding.word_ids], np.int32)
  classes = [label if label == NO_LABEL else _class(label, "labels") for label in labels]
  at = np.asarray([*classes, NO_LABEL], np.int32)[number]  # the last one is for no word
  learnt = (at != NO_LABEL) & (np.diff(number, prepend=-1) != 0)
  return _example(encoding, np.where(learnt, at, 0).astype(np.int32), learnt)


def tokenize_alike(row: Mapping[str, Any], tokenizer: Tokenizer, completion_only: bool) -> Example:
  """Two or three documents that do not see each other."""
  del completion_only
  names = ["anchor", "positive"] + ["negative"] * (row.get("negative") is not None)
  encodings = [tokenizer.backend.encode(text_of(row, name)) for name in names]
  tokens = np.concatenate([np.asarray(encoding.ids, np.int32) for encoding in encodings])
  return Example(
    tokens,
    np.arange(len(tokens)) == 0,
    parts=tuple(len(encoding.ids) for encoding in encodings),
    closing=min(map(_closing, encodings)),
  )


def _class(value: Any, column: str) -> int:
  if not isinstance(value, int) or value < 0:
    raise BadRow("of the wrong type", f"column {column!r} holds {value!r}; classes count from 0")
  return value


def _example(encoding: Any, labels: np.ndarray, learnt: np.ndarray) -> Example:
  return Example(
    np.asarray(encoding.ids, np.int32),
    learnt,
    labels=labels,
    types=np.asarray(encoding.type_ids, np.int32),
    closing=_closing(encoding),
  )


def _closing(encoding: Any) -> int:
  """How many special tokens are at the end."""
  special = encoding.special_tokens_mask
  return next((i for i, flag in enumerate(reversed(special)) if not flag), len(special))
