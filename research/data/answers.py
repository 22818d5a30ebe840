"""Rows about answers, and how each kind of them is read and laid out in a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from research.data import preferences, prompts
from research.data.examples import Example

if TYPE_CHECKING:
  from research.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of rows.

  read: a row as an example; raises `examples.BadRow`.
  fit: `(example, length, on_long_row)`, the example in rows of so many tokens; raises the same.
  rows: neighbouring rows of a batch that an example takes.
  laid_out: `(examples, length)`, the rows of a batch of examples.
  told: what examples tell, which a batch has for each row.
  """

  read: Callable[[Mapping[str, Any], Tokenizer], Example]
  fit: Callable[[Example, int, str], Example]
  rows: int
  laid_out: Callable[[Sequence[Example], int], list[list[Example]]]
  told: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
  "pairs": Kind(
    preferences.tokenize_pair, preferences.fit, preferences.ROWS, preferences.rows_of, ("margin",)
  ),
  "judged": Kind(
    preferences.tokenize_judged, preferences.fit, preferences.ROWS, preferences.rows_of, ("label",)
  ),
  "prompts": Kind(
    prompts.tokenize, prompts.fit, 1, lambda examples, length: [[one] for one in examples]
  ),
}
