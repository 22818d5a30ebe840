"""Stop strings: texts that end a completion wherever they appear in it, also across tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from research.data.tokenizer import StreamDecoder, Tokenizer


@dataclasses.dataclass(frozen=True)
class StopStrings:
  """What ends a completion, and the tokenizer by which its tokens are read.

  strings: none is empty. They are looked for in the decoded text, in which special tokens do not
    appear.
  """

  tokenizer: Tokenizer
  strings: tuple[str, ...]

  def __post_init__(self):
    if "" in self.strings:
      raise ValueError("a stop string is empty; it would end every completion before its start")

  def text(self, tokens: Sequence[int]) -> str:
    """The text of a completion, cut before the first stop string."""
    text = self.tokenizer.decode(tokens)
    return text[: self.find(text)]

  def find(self, text: str) -> int | None:
    """Where the first stop string begins, or None."""
    places = [place for place in map(text.find, self.strings) if place >= 0]
    return min(places, default=None)

  def reader(self) -> Reader:
    """For the tokens of one completion as they come."""
    return Reader(self)


class Reader:
  """Text of one completion as its tokens come, never with any part of a stop string.

  Invariant: what was returned and what is held back are the text so far, up to the stop string;
  what is held back could be the beginning of one.

  tokens: how many were pushed. stopped: a stop string has come, and nothing follows.
  """

  def __init__(self, stop: StopStrings):
    self._stop = stop
    self._decoder = StreamDecoder(stop.tokenizer)
    self._held = ""
    self.tokens = 0
    self.stopped = False

  def push(self, token: int) -> str:
    """The text that `token` makes certain."""
    self.tokens += 1
    return "" if self.stopped else self._release(self._decoder.push(token))

  def flush(self) -> str:
    """What is held back, at the end of the completion."""
    text = "" if self.stopped else self._release(self._decoder.flush())
    text, self._held = text + self._held, ""
    return text

  def _release(self, new: str) -> str:
    text = self._held + new
    place = self._stop.find(text)
    if place is not None:
      self._held, self.stopped = "", True
      return text[:place]
    keep = max((_overlap(text, string) for string in self._stop.strings), default=0)
    self._held = text[len(text) - keep :]
    return text[: len(text) - keep]


def first_stops(
  readers: Sequence[Reader | None], tokens: np.ndarray, lengths: np.ndarray
) -> dict[int, int]:
  """Pushes the tokens that are new -> row -> its length, up to the token that completes a string.

  Args:
    readers: of each row, None for one that is not read.
    tokens: int32 `[B, M]`. lengths: int32 `[B]`, how many of them are there.
  """
  found: dict[int, int] = {}
  for row, reader in enumerate(readers):
    if reader is None:
      continue
    for at in range(reader.tokens, lengths[row]):
      reader.push(int(tokens[row, at]))
      if reader.stopped:
        found[row] = at + 1
        break
  return found


def _overlap(text: str, string: str) -> int:
  """The length of the longest end of `text` with which `string` begins, short of all of it."""
  most = min(len(text), len(string) - 1)
  return next((n for n in range(most, 0, -1) if text.endswith(string[:n])), 0)
