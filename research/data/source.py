"""What a source is: random access to rows by index, and a fingerprint of the content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from research.core import tree
from research.data.examples import Report

Row = dict[str, Any]


class Source(Protocol):
  """Rows by index.

  Attributes:
    name: for people: what is read.
    fingerprint: equal for equal content.
    report: rows that were lost before there was a source, in preparation.
  """

  name: str
  fingerprint: str
  report: Report

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Row:
    """Row `index`; a row that cannot be read raises `BadRow`."""
    ...

  def origin(self, index: int) -> int:
    """The index under which people know the row, such as its line in the file, from 0."""
    ...


def check_keys(
  what: str, given: Mapping[str, Any], known: Sequence[str], required: Sequence[str] = ()
) -> None:
  """Raises ValueError for the first key of `given` that is not `known`, or for those it lacks."""
  for key in given:
    if key not in known:
      raise ValueError(f"{what} takes no {key!r}{tree.nearest(key, known)}; it takes {list(known)}")
  if missing := [key for key in required if key not in given]:
    raise ValueError(f"{what} needs {', '.join(missing)}")


def fingerprint(value: Any) -> str:
  """That of a source which is a function of `value`, which JSON can hold: 16 hexadecimal digits."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
