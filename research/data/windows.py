"""The stream of examples, its order, and the windows it is planned in.

The stream is endless in training: each source is shuffled anew each epoch as a function of
the seed and the epoch alone, sources are mixed by weight, and rows are tokenized as the
stream reaches them. A window is the next `config.window` examples of it, ended early by the
end of an epoch; it is packed (or sorted by length) into rows as a whole. So memory holds a
window, and a place in the rows is where their window began and a number.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grain
import numpy as np
import tqdm

from research.core import tree
from research.data import denoising, formats, packing, sources
from research.data import rows as rows_lib
from research.data.examples import Example, Report
from research.data.kept import Kept

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
    kept: Kept | None = None,
  ):
    _check_config(config, start_id is not None, virtual_tokens)
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
    self.batch_size = batch_size
    self._rows_per_task = rows_per_task
    self._shard = _share(batch_size, shard, rows_per_task)
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
      )
      for part in parts
    ]
    self._kept = kept
    self._stream = self._mixed(self.parts, weights)
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
    self._window: Window | None = None

  def _mixed(self, parts: Sequence[rows_lib.Rows], weights: Sequence[float]) -> Any:
    """The stream: endless, shuffled and mixed with a seed; all rows in order without."""
    streams = [grain.MapDataset.source(part) for part in parts]
    if self._seed is not None:
      if self._shuffle:
        seeds = np.random.SeedSequence(self._seed).generate_state(len(parts))
        streams = [s.shuffle(seed=int(n)) for s, n in zip(streams, seeds, strict=True)]
      streams = [stream.repeat() for stream in streams]
    streams = [
      stream.map_with_index(functools.partial(self._finished, number, len(part)))
      for number, (stream, part) in enumerate(zip(streams, parts, strict=True))
    ]
    if len(streams) == 1:
      return streams[0]
    if self._seed is None:
      return grain.MapDataset.concatenate(streams)
    return grain.MapDataset.mix(streams, weights)

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
      examples = tuple(
        self._denoiser(example, np.random.default_rng([*place, piece]))
        for piece, example in enumerate(examples)
      )
    return tuple(
      dataclasses.replace(example, task=part).led_by(self._virtual_tokens) for example in examples
    )

  def window(self, start: Place, progress: bool = False) -> Window:
    """The window that begins at `start`, with no rows at the end of a finite stream.

    Args:
      start: where the last one ended, or `Place()`.
      progress: show a bar if it takes seconds.

    Raises:
      ValueError: a whole epoch holds no usable row, or a row is bad and shall stop.
    """
    if self._window is None or self._window.start != start:
      examples, end = self._read(start, progress)
      self._window = Window(start, end, self._plan(examples, start))
    return self._window

  def _read(self, start: Place, progress: bool) -> tuple[list[Example], Place]:
    examples: list[Example] = []
    place, barren = start, 0
    limit = self._target
    bar = tqdm.tqdm(
      total=min(limit, self.epoch_rows),
      desc="tokenizing",
      unit=" rows",
      delay=2,
      leave=False,
      disable=not progress,
    )
    with bar:
      while len(examples) < limit and place.position < len(self._stream):
        pieces = self._stream[place.position]
        taken = pieces[place.piece :][: limit - len(examples)]
        examples.extend(taken)
        if place.piece + len(taken) < len(pieces):
          place = Place(place.position, place.piece + len(taken))
          break
        place = Place(place.position + 1, 0)
        bar.update()
        barren = 0 if pieces else barren + 1
        if barren >= self.epoch_rows:
          raise ValueError(f"none of {self.epoch_rows} rows can be used\n{self.report}")
        if place.position % self.epoch_rows == 0 and examples:
          # The epoch is over: fill the last batch and leave the rest to the next window.
          limit = min(limit, math.ceil(len(examples) / self._unit) * self._unit)
    return examples, place

  def _plan(self, examples: list[Example], start: Place) -> list[list[Example]]:
    rng = None
    if self._seed is not None and self._shuffle:
      rng = np.random.default_rng([self._seed, start.position, start.piece])
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
    if self._seed is not None and not self._shuffle:
      return [[example] for example in examples]
    return packing.rows_by_length(examples, together, rng)

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


def _share(batch_size: int, shard: tuple[int, int], rows_per_task: int) -> slice:
  """The rows of a batch that are this host's, whole tasks where rows come by task."""
  index, count = shard
  if not 0 <= index < count or batch_size % count:
    raise ValueError(
      f"shard {index} of {count} of a batch of {batch_size}: the shard is from 0 to below the "
      "count, and the count divides the batch"
    )
  if not rows_per_task:
    return slice(index, batch_size, count)
  share = batch_size // count
  if share % rows_per_task:
    raise ValueError(
      f"{share} rows of a batch are no whole tasks of {rows_per_task} rows; "
      f"batch_size is a multiple of {rows_per_task * count}"
    )
  return slice(index * share, (index + 1) * share)


def _check_config(config: Any, pairs: bool, virtual_tokens: int) -> None:
  choices = {
    "packing": ("best_fit", "none"),
    "on_bad_row": ("drop", "stop"),
    "on_long_row": formats.ON_LONG_ROW,
  }
  for key, known in choices.items():
    value = getattr(config, key)
    if value not in known:
      raise ValueError(
        f"data.{key} {value!r} is none of {', '.join(known)}{tree.nearest(str(value), known)}"
      )
  if config.target_length and not pairs:
    raise ValueError(
      f"data.target_length {config.target_length} is of encoder-decoders; 0 for a decoder"
    )
  if pairs and not config.corruption and config.on_long_row == "split":
    raise ValueError("data.on_long_row 'split' is for documents; pairs are truncated or dropped")
  if config.length < 2 or config.window < 1:
    raise ValueError(
      f"data.length is at least 2 and data.window at least 1, not {config.length}, {config.window}"
    )
  if virtual_tokens and config.length - virtual_tokens < 2:
    raise ValueError(
      f"data.length {config.length} leaves no room beside {virtual_tokens} virtual tokens"
    )
  if any(not 1 < bucket <= max(config.length, config.target_length) for bucket in config.buckets):
    raise ValueError(f"data.buckets {config.buckets} are not all from 2 to {config.length}")
