"""The order of rows: each part shuffled anew each epoch by the seed, parts mixed by weight."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from research.data.examples import Example
from research.data.rows import Row, Rows, Some

# (number of the part, rows that it draws from, position in its stream, row) -> examples
Finish = Callable[[int, int, int, Row], tuple[Example, ...]]


class Stream:
  """Examples of each row by the row's position: endless with a seed, all rows once without.

  Attributes:
    epoch_rows: rows that it draws from, of all parts.
    before: how many rows were drawn before position 0, of all parts.
  """

  def __init__(
    self,
    parts: Sequence[Rows],
    weights: Sequence[float],
    finish: Finish,
    seed: int | None,
    shuffle: bool,
    allowed: Sequence[np.ndarray] | None = None,
    order: int = 0,
    offsets: Sequence[int] = (),
  ):
    """Puts the rows in their order, and reads none.

    Args:
      weights: of the parts, of which some may be 0.
      allowed: of each part, the rows that are drawn from; None: all.
      order: streams of other numbers have other orders.
      offsets: how many rows of each part were drawn before; none: 0 of each.
    """
    drawn_from: Sequence[Rows | Some] = parts
    if allowed is not None:
      drawn_from = [Some(part, own) for part, own in zip(parts, allowed, strict=True)]
    self.epoch_rows = sum(map(len, drawn_from))
    self._offsets = list(offsets) or [0] * len(parts)
    self.before = sum(self._offsets)
    # Parts without a weight are no part of the mixture.
    self._mixed = {number: weight for number, weight in enumerate(weights) if weight > 0}
    entropy = [seed or 0, order] if order else seed
    seeds = np.random.SeedSequence(entropy).generate_state(len(parts))
    streams: list[Any] = []
    for number, rows in enumerate(drawn_from):
      stream = grain.MapDataset.source(rows)
      if seed is not None:
        if shuffle:
          stream = stream.shuffle(seed=int(seeds[number]))
        stream = stream.repeat()
      stream = stream.map_with_index(functools.partial(finish, number, len(rows)))
      offset = self._offsets[number]
      streams.append(stream[offset:] if offset else stream)
    if len(streams) == 1:
      self._rows = streams[0]
    elif seed is None:
      self._rows = grain.MapDataset.concatenate(streams)
    else:
      mixed = [streams[number] for number in self._mixed]
      self._rows = grain.MapDataset.mix(mixed, list(self._mixed.values()))

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, position: int) -> tuple[Example, ...]:
    return self._rows[position]

  def drawn(self, position: int) -> list[int]:
    """How many rows of each part were drawn up to a position, offsets included."""
    found = list(self._offsets)
    counts = drawn(list(self._mixed.values()), position)
    for number, count in zip(self._mixed, counts, strict=True):
      found[number] += count
    return found


def drawn(weights: Sequence[float], count: int) -> list[int]:
  """How many of the first `count` rows that `grain` mixes by weights are of each part."""
  if len(weights) == 1:
    return [count]
  endless = grain.MapDataset.range(2**40)
  mixed = grain.MapDataset.mix(
    [endless.map(functools.partial(_numbered, part)) for part in range(len(weights))], weights
  )
  # A part's rows come in their order: the next one of each tells how many there were.
  found: dict[int, int] = {}
  at = count
  while len(found) < len(weights):
    part, index = mixed[at]
    found.setdefault(part, index)
    at += 1
  return [found[part] for part in range(len(weights))]


def _numbered(part: int, index: int) -> tuple[int, int]:
  return part, index
