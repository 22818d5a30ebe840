"""What a sweep is: the words of `experiments/NAME/sweep.py`, and how that file is read.

A description is a value. What it describes follows from it alone, so that the same file gives the
same runs on every machine, before and after an interruption. Only an Optuna search depends on
results, too, and keeps a journal of them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.core.config import ConfigError

Overrides = Mapping[str, Any]
"""`dotted key of the config -> value`."""

Values = Sequence[Any] | Mapping[str, Any]
"""Values that a key takes; a mapping names them, which values with parts need."""


@dataclasses.dataclass(frozen=True)
class Uniform:
  """A number between `low` and `high`, all as likely.

  Raises:
    ConfigError: there is nothing between the two.
  """

  low: float
  high: float

  def __post_init__(self) -> None:
    if not -math.inf < self.low < self.high < math.inf:
      raise ConfigError(f"{self} has nothing between its ends")


@dataclasses.dataclass(frozen=True)
class LogUniform:
  """A number between `low` and `high` whose logarithm is uniform.

  Raises:
    ConfigError: an end is not above 0, or there is nothing between the two.
  """

  low: float
  high: float

  def __post_init__(self) -> None:
    if not 0 < self.low < self.high < math.inf:
      raise ConfigError(f"{self} needs ends above 0 with something between them")


@dataclasses.dataclass(frozen=True)
class Choice:
  """One of several values, all as likely; a mapping names them.

  Raises:
    ConfigError: there are none.
  """

  values: Values

  def __post_init__(self) -> None:
    if not self.values:
      raise ConfigError("a Choice of nothing")


Space = Mapping[str, Uniform | LogUniform | Choice]
"""`dotted key of the config -> where its values are drawn from`."""


@dataclasses.dataclass(frozen=True)
class Random:
  """`count` points drawn from a space, each key on its own; a function of `seed`."""

  space: Space
  count: int
  seed: int = 0

  def __post_init__(self) -> None:
    if self.count < 1 or not self.space:
      raise ConfigError("Random draws one point or more from a space of one key or more")


@dataclasses.dataclass(frozen=True)
class Search:
  """`trials` points that Optuna's TPE sampler asks for, each knowing the results before it.

  Attributes:
    space: where they come from.
    trials: how many.
    goal: "max" or "min", of the mean over seeds of the sweep's first metric.
    seed: of the sampler.
  """

  space: Space
  trials: int
  goal: str
  seed: int = 0

  def __post_init__(self) -> None:
    if self.trials < 1 or not self.space:
      raise ConfigError("a Search has one trial or more in a space of one key or more")
    if self.goal not in ("max", "min"):
      raise ConfigError(f"a Search's goal is 'max' or 'min', not {self.goal!r}")


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Points in the space of configs, each run from several seeds.

  Points are the product of `points`, `grid` and `random`, and beside them those of `search`; of
  nothing they are one, the config itself.

  Attributes:
    config: the config's file, as `research.train --config` takes it.
    metrics: what is told of each run: keys of its `results.json`, or figures of its last
      evaluation ("eval/arithmetic/accuracy"). The first is what is searched for.
    points: named overrides.
    grid: the values of each key.
    random: points drawn from a space.
    search: points that Optuna asks for.
    seeds: values of `config.seed`.
    baseline: what others are compared with, seed by seed: a point's name; or, as {key: value's
      name}, for each point the one that differs from it in these keys alone. "point" is the key
      of `points`. Empty: nothing.
    x: the key along which points are drawn in the plot; empty: each on a line of its own.
  """

  config: str
  metrics: tuple[str, ...]
  points: Mapping[str, Overrides] = dataclasses.field(default_factory=dict)
  grid: Mapping[str, Values] = dataclasses.field(default_factory=dict)
  random: Random | None = None
  search: Search | None = None
  seeds: tuple[int, ...] = (0, 1, 2)
  baseline: str | Mapping[str, str] = ""
  x: str = ""

  def __post_init__(self) -> None:
    if not self.metrics or isinstance(self.metrics, str):
      raise ConfigError('metrics is a tuple of one name or more, as ("loss",)')
    if not self.seeds or len(set(self.seeds)) < len(self.seeds):
      raise ConfigError(f"seeds are {self.seeds}; they are one or more, each once")
    for key, values in self.grid.items():
      if isinstance(values, str) or not values:
        raise ConfigError(f"grid[{key!r}] is {values!r}; it is a tuple of values, or names them")


def load(experiment: Path) -> Sweep:
  """The sweep that `get_sweep()` of `experiment/sweep.py` returns.

  Raises:
    ConfigError: there is no such file, or what it says cannot be.
  """
  file = experiment / "sweep.py"
  if not file.is_file():
    raise ConfigError(f"there is no {file}; it defines get_sweep()")
  spec = importlib.util.spec_from_file_location("launch_sweep_file", file)
  assert spec and spec.loader  # it ends in .py
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    sweep = module.get_sweep()
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == spec.origin]
    where = f"{file}:{lines[-1]}" if lines else str(file)
    raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error
  if not isinstance(sweep, Sweep):
    raise ConfigError(f"{file}: get_sweep() returned a {type(sweep).__name__}, not a launch.Sweep")
  return sweep
