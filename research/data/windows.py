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

from research.data import denoising, settings, sources
from research.data import rows as rows_lib
from research.data.curriculum import Phase
from research.data.examples import Example, Report
from research.data.kept import Kept
from research.data.layout import Batch, Layout, Rows
from research.data.stream import Stream

if TYPE_CHECKING:
  from research.data.tokenizer import Tokenizer

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
  rows: Rows


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
    self._seed, self._shuffle = seed, config.shuffle
    self._kept, self._virtual_tokens = kept, virtual_tokens
    source = sources.build(config.source)
    self._name = source.name
    self.report = Report()
    self.report.merge(source.report)
    if self.report and config.on_bad_row == "stop":
      raise ValueError(f"{self.report} (data.on_bad_row='drop' leaves such rows out)")
    self.epoch_rows = len(source)
    if not self.epoch_rows:
      raise ValueError(f"{source.name} has no rows")
    self.tasks: tuple[str, ...] = ()
    self.sources, weights = [source], [1.0]
    if isinstance(source, sources.Mixture):
      self.sources, weights, self.tasks = source.parts, source.weights, source.tasks
    self._weights = tuple(weights)
    if rows_per_task and len(self.sources) < 2:
      raise ValueError(f"rows by task need a mixture of tasks; {source.name} is one")
    self._denoiser = denoising.build(config.corruption, tokenizer, start_id)
    pairs = None
    if start_id is not None:
      pairs = rows_lib.Pairs(start_id, config.target_length or config.length)
    has_prefix = bool(self._denoiser and self._denoiser.bidirectional)
    self._layout = Layout.of(
      config,
      batch_size=batch_size,
      shard=shard,
      in_order=seed is not None and not config.shuffle,
      answers=answers,
      rows_per_task=rows_per_task,
      target_length=pairs.target_length if pairs else None,
      numbers=["prefix"] * has_prefix + ["task"] * bool(self.tasks),
      kept=kept.count if kept else 0,
      pad_id=tokenizer.pad_id or 0,
    )
    self.batch_size = self._layout.batch_size
    self._target = math.ceil(config.window / self._layout.unit) * self._layout.unit
    self.parts = [
      rows_lib.Rows(
        part,
        tokenizer,
        config,
        self.report,
        self.epoch_rows <= config.window,
        self._denoiser,
        pairs,
        config.length - virtual_tokens,
        answers,
      )
      for part in self.sources
    ]
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
    if pairs:
      self.settings |= dataclasses.asdict(pairs)
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
      layout = self._layout
      if layout.pairs or layout.answers or self._kept:
        raise ValueError(
          "lengths change for documents; rows of two sides, about answers and those that a teacher"
          " was asked of have one length"
        )
      longest = layout.capacity[1]
      if not self._virtual_tokens + 1 < phase.length <= longest:
        raise ValueError(f"its length, {phase.length}, is not from 2 to data.length, {longest}")
      planner._layout = dataclasses.replace(layout, capacity=(0, phase.length))
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
    place, barren, stream, unit = start, 0, self._stream, self._layout.unit
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
          limit = min(limit, math.ceil(len(examples) / unit) * unit)
    return examples, place

  def _plan(self, examples: list[Example], start: Place) -> Rows:
    rng = None
    if self._seed is not None and self._shuffle:
      place = [self._seed, self._stream.before + start.position, start.piece]
      rng = np.random.default_rng(place + ([self.order] if self.order else []))
    return self._layout.rows(examples, rng)

  def batch(self, rows: Rows) -> Batch:
    """This host's share of the batch of `rows`, with empty rows to fill it up."""
    return self._layout.batch(rows)

  def description(self, start: Place) -> str:
    """A line on the window at `start`."""
    rows = self.window(start, progress=True).rows
    return f"{self._name}: {self.epoch_rows:,} rows; {self._layout.description(rows)}"
