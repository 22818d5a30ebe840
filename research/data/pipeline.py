"""From a data config to batches: training without end and resumed exactly, evaluation once.

Batches are the next `batch_size` rows of the windows that `windows` plans; the state of the
iterator is where the window began and how many of its rows are gone. Every host plans the
same rows and takes its share of each batch: the number of hosts does not change a batch.

A config has `source` (see `sources`), `length` (tokens a row), `target_length` (of pairs for an
encoder-decoder, whose sources have `length`; 0 is as many), `packing` (`best_fit`, or
`none`: a document a row), `buckets` (the lengths that `none` pads to; `length` is always
one), `completion_only`, `corruption` (see `denoising`), `on_bad_row` (`drop`, `stop`),
`on_long_row` (`drop`, `truncate`, `split`, `stop`, and of preferences `truncate_start`), `shuffle`,
`window` (examples planned at a time, and so in memory) and maybe `curriculum` (see there).
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import grain

from research.data import curriculum, phases, sources
from research.data.curriculum import Curriculum
from research.data.examples import Example
from research.data.kept import Kept
from research.data.windows import Batch, Place, Planner

if TYPE_CHECKING:
  from research.data.tokenizer import Tokenizer

# Enough to keep training while the next window is tokenized.
_PREFETCHED_BATCHES = 16


class _Batches(grain.IterDataset):
  """The endless batches of a planner, or of a curriculum's phases."""

  def __init__(self, planner: Planner, plan: Curriculum | None):
    super().__init__()
    self._planner, self._plan = planner, plan
    self._planners = phases.planners(planner, plan) if plan else []

  def __iter__(self) -> grain.DatasetIterator:
    if self._plan:
      return phases.PhasedIterator(self._planners, self._plan)
    return _BatchesIterator(self._planner)


class _BatchesIterator(grain.DatasetIterator):
  """Batches of the rows of one window after another."""

  def __init__(self, planner: Planner):
    super().__init__()
    self._planner = planner
    self._start = Place()
    self._row = 0

  def __next__(self) -> Batch:
    rows: list[list[Example]] = []
    while need := self._planner.batch_size - len(rows):
      window = self._planner.window(self._start)
      taken = window.rows[self._row : self._row + need]
      rows.extend(taken)
      self._row += len(taken)
      if self._row == len(window.rows):
        self._start, self._row = window.end, 0
    return self._planner.batch(rows)

  def get_state(self) -> dict[str, int]:
    return {"position": self._start.position, "piece": self._start.piece, "row": self._row}

  def set_state(self, state: dict[str, int]) -> None:
    self._start, self._row = Place(state["position"], state["piece"]), state["row"]


class BatchIterator:
  """Endless training batches, prefetched in a thread; made by `train_batches`.

  Attributes:
    report: the rows dropped or changed so far. It is complete when the stream has been
      through an epoch, at once if the rows fit in a window.
    tasks: names of the numbers in the batches' `task`; without any there is no `task`.
    rows: of the source.
    settings: what batches depend on, for JSON.
  """

  def __init__(self, planner: Planner, plan: Curriculum | None = None):
    self._planner, self._plan = planner, plan
    self.report = planner.report
    self.tasks = planner.tasks
    self.rows = planner.epoch_rows
    told = sources.plain(dataclasses.asdict(plan)) if plan else None
    self.settings = {**planner.settings, "curriculum": told}
    batches = _Batches(planner, plan)
    self._iterator = iter(
      grain.experimental.ThreadPrefetchIterDataset(
        batches, prefetch_buffer_size=_PREFETCHED_BATCHES
      )
    )
    # Grain stops the thread when its iterator is deleted, which fails noisily once the
    # interpreter is going down; this deletes it before.
    weakref.finalize(self, vars(self).pop, "_iterator", None)

  def __iter__(self) -> BatchIterator:
    return self

  def __next__(self) -> Batch:
    """This host's rows of the next batch, `[batch_size / shard_count, S]`."""
    return next(self._iterator)

  def get_state(self) -> dict[str, Any]:
    """Where the next batch begins: a small dict that JSON holds."""
    return {**self._iterator.get_state(), "settings": self.settings}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to where `get_state` was called, in this process or another.

    Raises:
      ValueError: the state is of other data or settings, where it means another place.
    """
    ours, theirs = self.settings, state["settings"]
    if changed := [key for key in ours if ours[key] != theirs.get(key)]:
      told = ", ".join(f"{key} was {theirs.get(key)!r}, is {ours[key]!r}" for key in changed)
      raise ValueError(f"the saved place in the data is of other data: {told}")
    self._iterator.set_state({key: state[key] for key in state if key != "settings"})

  def figures(self, step: int) -> dict[str, float]:
    """What of the data changes on the way, as it is in the batch of a step, from 0."""
    return self._plan.figures(step) if self._plan else {}

  def description(self) -> str:
    """A line: rows, tokens, share of padding. Before the first batch it plans a window.

    With a curriculum that is a window of all rows, and there is a second line.
    """
    if self._plan:
      return f"{self._planner.description(Place())}\n{self._plan}"
    state = self._iterator.get_state()
    return self._planner.description(Place(state["position"], state["piece"]))

  def close(self) -> None:
    """Ends the thread; no more batches."""
    self._iterator.close()


class EvalBatches:
  """Finite batches that hold every usable example once, each time it is iterated over.

  Attributes:
    report: the rows dropped or changed; complete after one pass.
    tasks, rows, settings: see `BatchIterator`.
  """

  def __init__(self, planner: Planner):
    self._planner = planner
    self.report = planner.report
    self.tasks = planner.tasks
    self.rows = planner.epoch_rows
    self.settings = planner.settings

  def __iter__(self) -> Iterator[Batch]:
    place = Place()
    rows: list[list[Example]] = []
    size = self._planner.batch_size
    while (window := self._planner.window(place)).rows:
      place = window.end
      rows += window.rows
      while len(rows) >= size:
        yield self._planner.batch(rows[:size])
        del rows[:size]
    if rows:
      yield self._planner.batch(rows)

  def description(self) -> str:
    """One line: rows, tokens, share of padding."""
    return self._planner.description(Place())


def train_batches(
  config: Any,
  tokenizer: Tokenizer,
  *,
  batch_size: int,
  seed: int,
  rows_per_task: int = 0,
  start_id: int | None = None,
  virtual_tokens: int = 0,
  answers: str | None = None,
  shard_index: int = 0,
  shard_count: int = 1,
  kept: Kept | None = None,
  steps: int | None = None,
) -> BatchIterator:
  """Endless batches (docs/architecture.md) of a data config, as this module describes it.

  Args:
    config: the data section.
    tokenizer: the model's.
    batch_size: rows of the global batch, over all hosts.
    seed: of the order.
    rows_per_task: each so many rows of a batch, from its first, are of one part of a mixture, some
      maybe empty; 0: rows come as they do.
    start_id: the token that an encoder-decoder's decoder begins with; rows then are pairs of a
      source and a target.
    virtual_tokens: how many, with ids -1, -2, ..., begin every document; they count in lengths,
      none of them is learnt, and the last one predicts the document's first token.
    answers: "pairs", "judged" or "prompts" (`answers.KINDS`); examples of the first two take two
      rows each, one after the other. `batch_size` then counts examples.
    shard_index, shard_count: this host takes rows `shard_index::shard_count` of each batch, or its
      share of whole groups and examples where several rows belong together.
    kept: what was kept of a teacher for these data; batches then have it, too.
    steps: of the run, for a curriculum.

  Raises:
    ValueError: the config is wrong, or rows are and `config.on_bad_row` says stop; what
      comes later in the stream raises when it is reached.
  """
  shard = (shard_index, shard_count)
  planner = Planner(
    config,
    tokenizer,
    batch_size=batch_size,
    shard=shard,
    seed=seed,
    rows_per_task=rows_per_task,
    start_id=start_id,
    virtual_tokens=virtual_tokens,
    kept=kept,
    answers=answers,
  )
  return BatchIterator(planner, curriculum.build(getattr(config, "curriculum", None), steps))


def eval_batches(
  config: Any,
  tokenizer: Tokenizer,
  *,
  batch_size: int,
  start_id: int | None = None,
  virtual_tokens: int = 0,
  answers: str | None = None,
  shard_index: int = 0,
  shard_count: int = 1,
  kept: Kept | None = None,
) -> EvalBatches:
  """Batches of every usable example of a data config once, the last filled with padding.

  Arguments and errors are those of `train_batches`; there is no shuffling, and no curriculum.
  """
  getattr(config, "curriculum", None)  # read, as `shuffle` is: a section may be that of training
  shard = (shard_index, shard_count)
  planner = Planner(
    config,
    tokenizer,
    batch_size=batch_size,
    shard=shard,
    seed=None,
    start_id=start_id,
    virtual_tokens=virtual_tokens,
    kept=kept,
    answers=answers,
  )
  return EvalBatches(planner)
