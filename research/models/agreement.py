"""Whether a model that was written and read again is the one that it was."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from research.core import matrix
from research.data.tokenizer import Tokenizer
from research.models.config import StackConfig
from research.models.families import rope
from research.nn.positions import Rope

Tree = Any

# What tokenizers differ on: digits, contractions, white space, composed characters, bytes.
_TEXTS = (
  "The year 1984 isn't 2024; they'll say that it was 3.14159 times as long.",
  "def area(r):\n    return 3.14 * r ** 2\n\n\n# 12345 is a number\n",
  "naïve café, żółć — Ünïcödé! 日本語のテキスト 한국어 🐎🐎",
  "I'LL NEVER   KNOW   WHY\t\ttabs\tare wide.  Two spaces.\r\n\r\n1. one\r\n2. two ",
)


def config_differences(found: StackConfig, meant: StackConfig) -> list[str]:
  """`"field found, not meant"` of each field that differs in what the model computes."""
  if type(found) is not type(meant):
    return [f"a {type(found).__name__}, not a {type(meant).__name__}"]
  told = []
  for field in dataclasses.fields(meant):
    pair = [getattr(config, field.name) for config in (found, meant)]
    # Settings that a kind of rotation does not read say nothing.
    values = [rope.write(value) if isinstance(value, Rope) else value for value in pair]
    if values[0] != values[1]:
      told.append(f"{field.name} {values[0]}, not {values[1]}")
  return told


def tokenizer_differences(found: Tokenizer, meant: Tokenizer) -> Iterator[str]:
  """What differs between two tokenizers: special tokens, the template, or a few texts' ids."""
  for name in ("bos_id", "eos_ids", "pad_id", "chat_template"):
    if getattr(found, name) != getattr(meant, name):
      yield f"{name} {getattr(found, name)!r}, not {getattr(meant, name)!r}"
  for text in (*_TEXTS, " and ".join(meant.special_tokens.values())):
    ids = meant.encode(text)
    if found.encode(text) != ids:
      yield f"{text!r} is {found.encode(text)}, not {ids}"
    elif found.decode(ids, skip_special=False) != meant.decode(ids, skip_special=False):
      yield f"{ids} is {found.decode(ids, skip_special=False)!r}, not what it was"


def largest_difference(found: Tree, meant: Tree) -> tuple[float, str]:
  """The largest absolute difference between two trees of one shape, in float32, and its path.

  Parameters in few bits are the numbers that they stand for. The path is empty where
  they are equal.
  """
  others = matrix.flatten(found)
  worst = (0.0, "")
  for path, leaf in matrix.flatten(jax.device_get(meant)).items():
    difference = np.abs(
      np.asarray(others[path].astype(np.float32)) - np.asarray(leaf.astype(np.float32))
    )
    if difference.max() > worst[0]:
      worst = (float(difference.max()), path)
  return worst
