"""How examples become rows, and rows a host's share of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from research.data import packing, settings
from research.data.answers import KINDS
from research.data.examples import Example

Batch = dict[str, np.ndarray]
Rows = list[list[Example]]


@dataclasses.dataclass(frozen=True)
class Layout:
  """Rows of one data config.

  packed: rows hold several documents, and all have `capacity`'s length.
  capacity: the most tokens of a row, of sources and of what a decoder reads.
  buckets: shorter lengths that a batch may have, ascending.
  batch_size: in rows. share: those of them that are this host's.
  unit: so many examples are a batch; 1 of packed rows.
  in_order: rows that are not packed stay as the stream has them.
  answers: a key of `answers.KINDS`, of whose answers each is a row; None: of documents.
  rows_per_task: so many rows that belong together are of one task; 0: tasks are mixed.
  pairs: whether batches have sources.
  numbers: fields of examples that batches have a row of (`packing.assemble`).
  kept: how many figures an example has of what a teacher was asked.
  """

  packed: bool
  capacity: tuple[int, int]
  buckets: Sequence[int]
  batch_size: int
  share: slice
  unit: int
  in_order: bool
  answers: str | None
  rows_per_task: int
  pairs: bool
  numbers: Sequence[str]
  kept: int
  pad_id: int

  @classmethod
  def of(
    cls,
    config: Any,
    *,
    batch_size: int,
    shard: tuple[int, int],
    answers: str | None,
    rows_per_task: int,
    target_length: int | None,
    **how: Any,
  ) -> Layout:
    """That of a data config, on one of several hosts.

    Args:
      batch_size: in examples, of which those about answers take several rows.
      shard: the host's number and how many there are.
      target_length: of an encoder-decoder's decoder; None: it is a decoder, and has no sources.
      how: other fields.

    Raises:
      ValueError: hosts cannot share such a batch.
    """
    packed = config.packing == "best_fit"
    rows = KINDS[answers].rows if answers else 1
    return cls(
      packed=packed,
      capacity=(config.length, target_length) if target_length else (0, config.length),
      buckets=sorted(config.buckets),
      batch_size=batch_size * rows,
      share=settings.share(batch_size * rows, shard, rows if answers else rows_per_task),
      # Rows of one document are whole batches of like length, so a window is whole batches.
      unit=1 if packed else batch_size,
      answers=answers,
      rows_per_task=rows_per_task,
      pairs=target_length is not None,
      **how,
    )

  def rows(self, examples: list[Example], rng: np.random.Generator | None) -> Rows:
    """Rows of all examples; if not packed, those of a batch (or a task's) are of like length.

    Args:
      rng: orders them; without, as they come.

    Raises:
      ValueError: examples of several parts are to be packed.
    """
    if not self.rows_per_task:
      return self._rows(examples, self.batch_size, rng)
    size = self.rows_per_task
    groups: list[Rows] = []
    for task in sorted({example.task for example in examples}):
      rows = self._rows([e for e in examples if e.task == task], size, rng)
      rows += [[] for _ in range(-len(rows) % size)]
      groups += [rows[at : at + size] for at in range(0, len(rows), size)]
    order = range(len(groups)) if rng is None else rng.permutation(len(groups))
    return [row for number in order for row in groups[number]]

  def _rows(self, examples: list[Example], together: int, rng: np.random.Generator | None) -> Rows:
    if self.packed:
      if any(example.parts for example in examples):
        raise ValueError(
          "rows of anchor and positive need data.packing='none': a row of the batch is an example"
        )
      return packing.packed_rows(examples, self.capacity, rng)
    if self.answers:
      return self._answer_rows(examples, rng)
    if self.in_order:
      return [[example] for example in examples]
    return packing.rows_by_length(examples, together, rng)

  def _answer_rows(self, examples: list[Example], rng: np.random.Generator | None) -> Rows:
    """The rows of each example, those of a batch of like length."""
    kind, size = KINDS[str(self.answers)], self.unit
    alone = [[e] for e in examples]
    rows = alone if self.in_order else packing.rows_by_length(examples, size, rng)
    ordered = [example for row in rows for example in row]
    batches = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    return [row for batch in batches for row in kind.laid_out(batch, self.capacity[1])]

  def widths(self, rows: Rows) -> tuple[int, int]:
    """The lengths of a batch of these rows and of its sources, the same on every host."""
    if self.packed:
      return self.capacity
    lengths = [np.reshape([packing.sides(e) for e in row], (-1, 2)).sum(axis=0) for row in rows]
    longest = np.max(lengths, axis=0)
    source, width = (
      packing.bucket(length, [*(b for b in self.buckets if b < most), most])
      for length, most in zip(longest, self.capacity, strict=True)
    )
    return source, width

  def batch(self, rows: Rows) -> Batch:
    """This host's share of the batch of `rows`, with empty rows to fill it up."""
    padded = (rows + [[] for _ in range(self.batch_size - len(rows))])[self.share]
    source, width = self.widths(rows)
    form = packing.form_of(rows)
    batch = packing.assemble(padded, width, self.pad_id, self.numbers, form, self.kept)
    if self.pairs:
      batch |= packing.assemble_sources(padded, source, self.pad_id)
    if self.answers:
      batch |= packing.told(padded, KINDS[self.answers].told)
    return batch

  def description(self, rows: Rows) -> str:
    """How rows planned together are laid out: documents, tokens, lengths and padding."""
    batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
    slots = sum(len(batch) * sum(self.widths(batch)) for batch in batches)
    documents = sum(map(len, rows))
    tokens = sum(sum(packing.sides(example)) for row in rows for example in row)
    lengths = " and ".join(str(length) for length in self.capacity if length)
    shorter = [f"{bucket}, " for bucket in self.buckets if bucket < max(self.capacity)]
    how = f"packed to {lengths}" if self.packed else f"padded to {''.join(shorter)}{lengths}"
    padding = f"{1 - tokens / slots:.1%} padding"
    return f"a window of {documents:,} has {tokens:,} tokens, {how} with {padding}"
