"""Where a run's numbers go: metrics.jsonl, TensorBoard files, the terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import tqdm


class JsonLines:
  """One JSON object a line, `{"step": N, name: number, ...}`, in the order of steps.

  A line is handed to the operating system before `write` returns, so that it outlives a killed
  process. A number that is not finite is null, which JSON has a word for.
  """

  def __init__(self, path: Path, resume_step: int | None):
    """Opens the file behind the last complete line of a step up to `resume_step`.

    Args:
      path: the file; made if missing.
      resume_step: where the run goes on; later lines, which it will write again, are cut off.
        None empties the file.
    """
    path.touch()
    end = 0
    if resume_step is not None:
      with path.open("rb") as lines:
        for line in lines:
          if not line.endswith(b"\n") or json.loads(line)["step"] > resume_step:
            break
          end += len(line)
    self._file = path.open("r+", encoding="utf-8")
    self._file.truncate(end)
    self._file.seek(end)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends a line."""
    finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
    self._file.write(json.dumps({"step": step, **finite}) + "\n")
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
  """The records of a metrics file, in order; a last line cut short by a crash is left out."""
  with path.open(encoding="utf-8") as lines:
    return [json.loads(line) for line in lines if line.endswith("\n")]


class TensorBoard:
  """Scalars for TensorBoard; events beyond the step a run goes on from are disowned."""

  def __init__(self, directory: Path, resume_step: int | None):
    self._directory = directory
    self._purge_step = None if resume_step is None else resume_step + 1
    self._writer: Any = None

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds a point to each named curve."""
    if self._writer is None:
      # Imported with the first numbers, when the device is busy already: the import takes
      # seconds where PyTorch is installed.
      from tensorboardX import SummaryWriter

      # Files are named by the second; the suffix keeps a quick restart out of the one before.
      suffix = f".{self._purge_step or 0}"
      self._writer = SummaryWriter(
        str(self._directory), purge_step=self._purge_step, filename_suffix=suffix
      )
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    """Writes out what is buffered."""
    if self._writer is not None:
      self._writer.close()


class Terminal:
  """A progress bar on a terminal; elsewhere a line now and then.

  Lines that others print go through `say`, which keeps the bar below them.
  """

  def __init__(
    self, total_steps: int, first_step: int, every_steps: int, out: TextIO | None = None
  ):
    """Args:
    total_steps: the end of the bar.
    first_step: where it starts.
    every_steps: steps between lines where there is no terminal.
    """
    self._out = out or sys.stderr
    self._total = total_steps
    self._every = every_steps
    self._bar = None
    if self._out.isatty():
      self._bar = tqdm.tqdm(
        total=total_steps, initial=first_step, unit="step", dynamic_ncols=True, file=self._out
      )

  def update(
    self, step: int, loss: float, tokens_per_second: float, data_share: float, seconds_left: float
  ) -> None:
    """Shows where the run stands after `step`; a rate of 0 means that none is known yet.

    data_share: of the time, what went to waiting for data.
    """
    rate = "compiling"
    if tokens_per_second:
      rate = f"{tokens_per_second:,.0f} tokens/s, {data_share:.0%} waiting for data"
    if self._bar is not None:
      self._bar.set_postfix_str(f"loss {loss:.4f}, {rate}", refresh=False)
      self._bar.update(step - self._bar.n)
    elif step % self._every == 0 or step == self._total:
      left = f", {tqdm.tqdm.format_interval(seconds_left)} left" if tokens_per_second else ""
      self.say(f"step {step}/{self._total}  loss {loss:.4f}  {rate}{left}")

  def say(self, text: str) -> None:
    """Prints a line."""
    if self._bar is not None:
      self._bar.write(text, file=self._out)
    else:
      print(text, file=self._out, flush=True)

  def close(self) -> None:
    """Leaves the bar as it stands."""
    if self._bar is not None:
      self._bar.close()
