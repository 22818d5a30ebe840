"""The stream of examples, its order, and the windows it is planned in.

The stream is endless in training: each source is shuffled anew each epoch as a function of
the seed and the epoch alone, sources are mixed by weight, and rows are tokenized as the
stream reaches them. A window is the next `config.window` examples of it, ended early by the
end of an epoch; it is packed (or sorted by length) into rows as a whole. So memory holds a
window, and a place in the rows is where their window began and a number.
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
import math
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tqdm

from research.data import denoising, packing, settings, sources
from research.data import rows as rows_lib
from research.data.answers import KINDS, Kind
from research.data.curriculum import Phase
from research.data.examples import Example, Report
from research.data.kept import Kept
from research.data.stream import Stream

if TYPE_CHECKING:
  from research.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]


_CORRUPTION = zlib.crc32(b"corruption")  # apart from the seeds of other draws


@dataclasses.dataclass(frozen=True)
class Place:
  """A place in the stream: the row at `position`, and of its examples the one at `piece`."""

  position: int = 0
  piece: int = 0


@dataclasses.dataclass(frozen=True)
class Window:
  """Rows planned together. Invariant: they hold the examples from `start` to before `end`."""

  start: Place
  end: Place
  rows: list[list[Example]]


class Planner:
  """Cuts the stream into windows and plans the rows of each."""

  def __init__(
    self,
    config: Any,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    shard: tuple[int, int],
    seed: int | None,
    rows_per_task: int = 0,
    start_id: int | None = None,
    virtual_tokens: int = 0,
    answers: str | None = None,
    kept: Kept | None = None,
  ):
    settings.require(config, start_id is not None, virtual_tokens, answers)
    if answers:
      settings.require_answers(config, answers, batch_size, start_id, rows_per_task)
    self._answers = answers
    self._packed = config.packing == "best_fit"
    self._buckets = sorted(config.buckets)
    self._pairs = None
    # The most tokens of a row, of sources and of what a decoder reads.
    self._capacity = (0, config.length)
    if start_id is not None:
      self._pairs = rows_lib.Pairs(start_id, config.target_length or config.length)
      self._capacity = (config.length, self._pairs.target_length)
    self._virtual_tokens = virtual_tokens
    self._pad_id = tokenizer.pad_id or 0
    # In rows; of answers the batch is told in examples, each of which takes several.
    self.batch_size = batch_size * (KINDS[answers].rows if answers else 1)
    self._rows_per_task = rows_per_task
    unit = KINDS[answers].rows if answers else rows_per_task
    self._shard = settings.share(self.batch_size, shard, unit)
    # Rows of one document are whole batches of like length, so a window is whole batches.
    self._unit = 1 if self._packed else batch_size
    self._target = math.ceil(config.window / self._unit) * self._unit
    self._seed = seed
    self._shuffle = config.shuffle
    source = sources.build(config.source)
    self._name = source.name
    self.report = Report()
    self.report.merge(source.report)
    if self.report and config.on_bad_row == "stop":
      raise ValueError(f"{self.report} (data.on_bad_row='drop' leaves such rows out)")
    self.epoch_rows = len(source)
    if not self.epoch_rows:
      raise ValueError(f"{source.name} has no rows")
    keep = self.epoch_rows <= config.window
    self._denoiser = denoising.build(config.corruption, tokenizer, start_id)
    self._numbers = ["prefix"] if self._denoiser and self._denoiser.bidirectional else []
    self.tasks: tuple[str, ...] = ()
    parts, weights = [source], [1.0]
    if isinstance(source, sources.Mixture):
      parts, weights, self.tasks = source.parts, source.weights, source.tasks
    if rows_per_task and len(parts) < 2:
      raise ValueError(f"rows by task need a mixture of tasks; {source.name} is one")
    if self.tasks:
      self._numbers.append("task")
    self.sources, self._weights = parts, tuple(weights)
    self.parts = [
      rows_lib.Rows(
        part,
        tokenizer,
        config,
        self.report,
        keep,
        self._denoiser,
        self._pairs,
        config.length - virtual_tokens,
        answers,
      )
      for part in parts
    ]
    self._kept = kept
    self._starts = np.cumsum([0, *map(len, self.parts)])
    # Of a phase of a curriculum: which rows it draws from, None for all, and the order's number.
    self._allowed: Sequence[np.ndarray] | None = None
    self.order = 0
    self.begin()
    self.settings = {
      "source": source.fingerprint,
      "seed": seed,
      "batch_size": batch_size,
      "length": config.length,
      "packing": config.packing,
      "buckets": list(config.buckets),
      "completion_only": config.completion_only,
      "on_long_row": config.on_long_row,
      "shuffle": config.shuffle,
      "window": config.window,
      "corruption": sources.plain(config.corruption),
      "vocab_size": tokenizer.vocab_size,
    }
    if rows_per_task:
      self.settings["rows_per_task"] = rows_per_task
    if self._pairs:
      self.settings |= dataclasses.asdict(self._pairs)
    if virtual_tokens:
      self.settings["virtual_tokens"] = virtual_tokens
    if answers:
      self.settings["answers"] = answers

  def of_phase(self, phase: Phase, allowed: Sequence[np.ndarray] | None) -> Planner:
    """The planner of a curriculum's phase, which `begin` sets to where it begins.

    Args:
      allowed: of each part, the rows that are drawn from; None: all.

    Raises:
      ValueError: the phase has weights of other parts, or a length that is none of these rows.
    """
    planner = copy.copy(self)
    planner._allowed, planner.order = allowed, phase.order
    if phase.weights is not None:
      if len(self.parts) != len(phase.weights) or len(self.parts) < 2:
        raise ValueError(
          f"it has weights of {len(phase.weights)} parts, and {self._name} is {len(self.parts)}"
        )
      planner._weights = phase.weights
    if phase.length is not None:
      if self._pairs or self._answers or self._kept:
        raise ValueError(
          "lengths change for documents; rows of two sides, about answers and those that a teacher"
          " was asked of have one length"
        )
      longest = self._capacity[1]
      if not self._virtual_tokens + 1 < phase.length <= longest:
        raise ValueError(f"its length, {phase.length}, is not from 2 to data.length, {longest}")
      planner._capacity = (0, phase.length)
      planner.parts = [part.of_length(phase.length - self._virtual_tokens) for part in self.parts]
    return planner

  def begin(self, offsets: Sequence[int] = ()) -> None:
    """Goes to where so many rows of each part were drawn; none: to the beginning."""
    self._window: Window | None = None
    how = (self._seed, self._shuffle, self._allowed, self.order, offsets)
    self._stream = Stream(self.parts, self._weights, self._finished, *how)

  def drawn(self, position: int) -> list[int]:
    """How many rows of each part were drawn up to a position, those of `begin` included."""
    return self._stream.drawn(position)

  def _finished(
    self, part: int, rows: int, position: int, row: rows_lib.Row
  ) -> tuple[Example, ...]:
    """The examples of a row at `position` of the stream of a part that has so many rows.

    What is drawn for an example depends on the seed, the epoch and the row alone.
    """
    examples = row.examples
    if self._kept:
      examples = self._kept.of(part, row.index, examples)
    if self._denoiser:
      place = [self._seed or 0, _CORRUPTION, part, position // rows, row.index]
      place += [self.order] if self.order else []
      examples = tuple(
        self._denoiser(example, np.random.default_rng([*place, piece]))
        for piece, example in enumerate(examples)
      )
    number = int(self._starts[part]) + row.index
    return tuple(
      dataclasses.replace(example, task=part, row=number).led_by(self._virtual_tokens)
      for example in examples
    )

  def window(self, start: Place, progress: bool = False, most: int | None = None) -> Window:
    """The window that begins at `start`, with no rows at the end of a finite stream.

    Args:
      start: where the last one ended, or `Place()`.
      progress: show a bar if it takes seconds.
      most: rows that are wanted; where there would be more, it has as few examples as make them.

    Raises:
      ValueError: a whole epoch holds no usable row, or a row is bad and shall stop.
    """
    if self._window is None or self._window.start != start:
      examples, end = self._read(start, self._target, progress)
      rows = self._plan(examples, start)
      if most is not None and len(rows) > most:
        numbers = range(len(examples))
        enough = bisect.bisect_left(
          numbers, most, key=lambda number: len(self._plan(examples[: number + 1], start))
        )
        examples, end = self._read(start, enough + 1, progress)
        rows = self._plan(examples, start)
      self._window = Window(start, end, rows)
    return self._window

  def _read(self, start: Place, limit: int, progress: bool) -> tuple[list[Example], Place]:
    examples: list[Example] = []
    place, barren, stream = start, 0, self._stream
    bar = tqdm.tqdm(
      total=min(limit, stream.epoch_rows),
      desc="tokenizing",
      unit=" rows",
      delay=2,
      leave=False,
      disable=not progress,
    )
    with bar:
      while len(examples) < limit and place.position < len(stream):
        pieces = stream[place.position]
        taken = pieces[place.piece :][: limit - len(examples)]
        examples.extend(taken)
        if place.piece + len(taken) < len(pieces):
          place = Place(place.position, place.piece + len(taken))
          break
        place = Place(place.position + 1, 0)
        bar.update()
        barren = 0 if pieces else barren + 1
        if barren >= stream.epoch_rows:
          raise ValueError(f"none of {stream.epoch_rows} rows can be used\n{self.report}")
        if (stream.before + place.position) % stream.epoch_rows == 0 and examples:
          # The epoch is over: fill the last batch and leave the rest to the next window.
          limit = min(limit, math.ceil(len(examples) / self._unit) * self._unit)
    return examples, place

  def _plan(self, examples: list[Example], start: Place) -> list[list[Example]]:
    rng = None
    if self._seed is not None and self._shuffle:
      place = [self._seed, self._stream.before + start.position, start.piece]
      rng = np.random.default_rng(place + ([self.order] if self.order else []))
    if not self._rows_per_task:
      return self._rows(examples, self.batch_size, rng)
    size = self._rows_per_task
    groups: list[list[list[Example]]] = []
    for task in sorted({example.task for example in examples}):
      rows = self._rows([e for e in examples if e.task == task], size, rng)
      rows += [[] for _ in range(-len(rows) % size)]
      groups += [rows[at : at + size] for at in range(0, len(rows), size)]
    order = range(len(groups)) if rng is None else rng.permutation(len(groups))
    return [row for number in order for row in groups[number]]

  def _rows(
    self, examples: list[Example], together: int, rng: np.random.Generator | None
  ) -> list[list[Example]]:
    """Rows of all examples; if not packed, each `together` are of like length."""
    if self._packed:
      if any(example.parts for example in examples):
        raise ValueError(
          "rows of anchor and positive need data.packing='none': a row of the batch is an example"
        )
      return packing.packed_rows(examples, self._capacity, rng)
    if self._answers:
      return self._answer_rows(KINDS[self._answers], examples, rng)
    if self._seed is not None and not self._shuffle:
      return [[example] for example in examples]
    return packing.rows_by_length(examples, together, rng)

  def _answer_rows(
    self, kind: Kind, examples: list[Example], rng: np.random.Generator | None
  ) -> list[list[Example]]:
    """The rows of each example, those of a batch of like length."""
    in_order = self._seed is not None and not self._shuffle
    size = self._unit
    rows = [[e] for e in examples] if in_order else packing.rows_by_length(examples, size, rng)
    ordered = [example for row in rows for example in row]
    batches = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    return [row for batch in batches for row in kind.laid_out(batch, self._capacity[1])]

  def _widths(self, rows: list[list[Example]]) -> tuple[int, int]:
    """The lengths of a batch of these rows and of its sources, the same on every host."""
    if self._packed:
      return self._capacity
    lengths = [np.reshape([packing.sides(e) for e in row], (-1, 2)).sum(axis=0) for row in rows]
    longest = np.max(lengths, axis=0)
    source, width = (
      packing.bucket(length, [*(b for b in self._buckets if b < most), most])
      for length, most in zip(longest, self._capacity, strict=True)
    )
    return source, width

  def batch(self, rows: list[list[Example]]) -> Batch:
    """This host's share of the batch of `rows`, with empty rows to fill it up."""
    padded = (rows + [[] for _ in range(self.batch_size - len(rows))])[self._shard]
    source, width = self._widths(rows)
    form = packing.form_of(rows)
    count = self._kept.count if self._kept else 0
    batch = packing.assemble(padded, width, self._pad_id, self._numbers, form, count)
    if self._pairs:
      batch |= packing.assemble_sources(padded, source, self._pad_id)
    if self._answers:
      batch |= packing.told(padded, KINDS[self._answers].told)
    return batch

  def description(self, start: Place) -> str:
    """A line on the window planned last, or if there is none on the one at `start`."""
    window = self._window or self.window(start, progress=True)
    rows = window.rows
    batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
    slots = sum(len(batch) * sum(self._widths(batch)) for batch in batches)
    documents = sum(map(len, rows))
    tokens = sum(sum(packing.sides(example)) for row in rows for example in row)
    lengths = " and ".join(str(length) for length in self._capacity if length)
    shorter = [f"{bucket}, " for bucket in self._buckets if bucket < max(self._capacity)]
    how = f"packed to {lengths}" if self._packed else f"padded to {''.join(shorter)}{lengths}"
    return (
      f"{self._name}: {self.epoch_rows:,} rows; a window of {documents:,} has {tokens:,} tokens, "
      f"{how} with {1 - tokens / slots:.1%} padding"
    )
