"""From what steps return to lines, curves and a progress bar, without holding up the device."""

from __future__ import annotations

import collections
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax

from research.io import metrics as metrics_lib
from research.loop import flow
from research.loop.falling import Falling

# Steps whose mean duration the terminal shows, and what of it went to waiting for data.
_RATE_STEPS = 20


class Recorder:
  """Records each step while the next one runs.

  `push` hands in a step's metrics as they are on the device and reads those of the step before:
  the device has its next work by then. `drain` reads what is left.

  metrics.jsonl gets every step; TensorBoard the mean of every `every_steps`, by weights.

  A step's `seconds` are those since the step before it was done, in which the batch of the next one
  may have been made ready; `data_seconds` are those of them in which the loop waited for a batch.
  Beside a device that is at work this costs nothing until it takes nearly all of `seconds`.
  """

  def __init__(
    self,
    directory: Path,
    *,
    resume_step: int | None,
    total_steps: int,
    every_steps: int,
    tensorboard: bool,
    flops_per_token: Callable[[float], float],
    peak_flops: float,
    trainable_paths: Sequence[str],
    max_nonfinite_steps: int,
    figures: Callable[[int], Mapping[str, float]] = lambda step: {},
    out: TextIO | None = None,
  ):
    """Opens the files, cut back to `resume_step` (None: new ones).

    Args:
      flops_per_token: FLOPs of training on one token in rows of a length.
      peak_flops: FLOP/s of all devices.
      trainable_paths: the names of the step's `nonfinite`.
      max_nonfinite_steps: updates skipped in a row that end the run.
      figures: what else there is to tell of a step, from 0.
      out: where lines go; None: stderr.
    """
    self._json = metrics_lib.JsonLines(directory / "metrics.jsonl", resume_step)
    self._watches = (Falling(), flow.Uneven())
    if resume_step:
      for line in metrics_lib.read_json_lines(directory / "metrics.jsonl"):
        for watch in self._watches:
          watch(line)  # what it says of these was said
    self._board = None
    if tensorboard:
      self._board = metrics_lib.TensorBoard(directory / "tensorboard", resume_step)
    self._terminal = metrics_lib.Terminal(total_steps, resume_step or 0, every_steps, out)
    self._total_steps = total_steps
    self._every_steps = every_steps
    self._flops_per_token = flops_per_token
    self._peak_flops = peak_flops
    self._trainable_paths = trainable_paths
    self._max_nonfinite_steps = max_nonfinite_steps
    self._figures = figures
    self._pending: collections.deque[tuple[int, Any]] = collections.deque()
    self._since = 0.0
    self._waited = 0.0
    self._compiled = False
    self._window: dict[str, tuple[float, float]] = {}
    # Tokens, seconds and seconds of waiting for data, a step.
    self._durations: collections.deque[tuple[float, float, float]]
    self._durations = collections.deque(maxlen=_RATE_STEPS)

  def begin(self) -> None:
    """A step is about to be prepared; the time of a step that nothing runs beside starts here."""
    if not self._pending:
      self._since = time.perf_counter()

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Around the loop's waiting for a batch."""
    started = time.perf_counter()
    yield
    self._waited += time.perf_counter() - started

  def push(self, step: int, metrics: Any) -> None:
    """`metrics` is what the train step returned for `step` (see `loop.step`).

    Raises:
      FloatingPointError: gradients were not finite for `max_nonfinite_steps` updates in a row.
    """
    self._pending.append((step, metrics))
    # A step that was not waited for is recorded while the next one runs. One that is done, as all
    # are where programs run on the calling thread, is recorded now: its time would else be told of
    # its neighbor.
    while len(self._pending) > 1 or (self._pending and _is_done(self._pending[0][1])):
      self._record(*self._pending.popleft())

  def drain(self) -> None:
    """Waits for the last step and records it; raises like `push`."""
    while self._pending:
      self._record(*self._pending.popleft())

  def evaluation(self, step: int, results: Mapping[str, float]) -> None:
    """Records an evaluation's results as a line of their own."""
    self._json.write(step, results)
    if self._board is not None:
      self._board.write(step, results)
    self.say(f"step {step}  " + "  ".join(f"{k} {v:.4g}" for k, v in results.items()))

  def say(self, text: str) -> None:
    """Prints a line above the progress bar."""
    self._terminal.say(text)

  def close(self) -> None:
    """Closes the files and the bar."""
    self._json.close()
    self._terminal.close()
    if self._board is not None:
      self._board.close()

  def _record(self, step: int, on_device: Any) -> None:
    metrics = jax.device_get(on_device)
    now = time.perf_counter()
    seconds, self._since = now - self._since, now
    waited, self._waited = self._waited, 0.0
    counts = {name: float(value) for name, value in metrics["counts"].items()}
    sums = {name: (float(a), float(b)) for name, (a, b) in metrics["sums"].items()}
    sums["padding"] = (counts["tokens"] - counts["useful_tokens"], counts["tokens"])
    sums["gradient_norm"] = (float(metrics["gradient_norm"]), 1.0)
    sums["learning_rate"] = (float(metrics["learning_rate"]), 1.0)
    told = flow.named(metrics.get("gradients", {}))
    sums |= {name: (value, 1.0) for name, value in told.items()}
    # `step` counts the steps that are done, this one among them.
    sums |= {name: (value, 1.0) for name, value in self._figures(step - 1).items()}
    # The first step of a process takes as long as its compilation: no rate.
    if self._compiled:
      sums["tokens_per_second"] = (counts["tokens"], seconds)
      sums["useful_tokens_per_second"] = (counts["useful_tokens"], seconds)
      sums["model_flops_utilization"] = (self._flops(counts), seconds * self._peak_flops)
      self._durations.append((counts["tokens"], seconds, waited))
    self._compiled = True
    means = _means(sums)
    self._json.write(step, {**means, **counts, "seconds": seconds, "data_seconds": waited})
    for watch in self._watches:
      if note := watch(means):
        self.say(f"step {step}: {note}")
    for name, (a, b) in sums.items():
      total, weight = self._window.get(name, (0.0, 0.0))
      self._window[name] = (total + a, weight + b)
    self._show(step, sums["loss"])
    if metrics["skipped_in_row"]:
      self._skipped(step, int(metrics["skipped_in_row"]), metrics["nonfinite"])

  def _flops(self, counts: Mapping[str, float]) -> float:
    """FLOPs of the useful tokens of a step."""
    useful = counts["useful_tokens"]
    # A row of n tokens has a mean context of n / 2: twice the mean is the length to reckon with.
    length = 2 * counts["context"] / useful if useful else 0.0
    return useful * self._flops_per_token(length)

  def _show(self, step: int, loss: tuple[float, float]) -> None:
    none = (0.0, 0.0, 0.0)
    tokens, seconds, waited = (sum(each) for each in zip(none, *self._durations, strict=True))
    rate, share = (tokens / seconds, waited / seconds) if seconds else (0.0, 0.0)
    left = (self._total_steps - step) * seconds / max(1, len(self._durations))
    at_window = step % self._every_steps == 0 or step == self._total_steps
    shown = self._window["loss"] if at_window else loss
    self._terminal.update(step, _mean(*shown), rate, share, left)
    if at_window:
      if self._board is not None:
        self._board.write(step, _means(self._window))
      self._window = {}

  def _skipped(self, step: int, in_row: int, nonfinite: Any) -> None:
    paths = [p for p, bad in zip(self._trainable_paths, nonfinite, strict=True) if bad]
    told = f"the gradient of {paths[0]}" if paths else "the loss"
    more = f" and of {len(paths) - 1} more" if len(paths) > 1 else ""
    if in_row >= self._max_nonfinite_steps:
      raise FloatingPointError(
        f"{told}{more} was not finite at step {step}, nor any update finite for {in_row} steps in "
        "a row; a lower optimizer.learning_rate or clip_norm may help"
      )
    self.say(f"step {step}: {told}{more} is not finite; update skipped ({in_row} in a row)")


def _mean(total: float, weight: float) -> float:
  return total / weight if weight else math.nan


def _means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
  return {name: _mean(*pair) for name, pair in sums.items()}


def _is_done(metrics: Any) -> bool:
  # What is no array of JAX has no such method, and is done.
  return all(getattr(leaf, "is_ready", lambda: True)() for leaf in jax.tree.leaves(metrics))
