"""Optuna's part of a sweep: it is asked here, in the launching process, and keeps a journal."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch import runs
from launch.description import Choice, LogUniform, Search, Uniform
from launch.points import Point, named
from launch.runs import Run
from research.core.config import ConfigError

JOURNAL = "search.journal"


class Trials:
  """The trials of a search, a point each; a `driver.Source`.

  A trial's value is the mean over seeds of the metric. Where a run of it failed, or told no finite
  number, the trial failed, of which the sampler learns nothing.

  Args:
    search: what is searched.
    metric: for what.
    directory: of the journal. Trials in it that are unfinished go on.
    runs_of: the runs of a point, one a seed.
    at_once: how many trials may be open at a time.

  Raises:
    ConfigError: Optuna is missing, or the journal is another search's.
  """

  def __init__(
    self,
    search: Search,
    metric: str,
    directory: Path,
    runs_of: Callable[[Point], list[Run]],
    at_once: int = 1,
  ):
    try:
      import optuna
      from optuna.storages.journal import JournalFileBackend
    except ImportError:
      raise ConfigError('a search needs Optuna: pip install -e ".[sweeps]"') from None
    self._search = search
    self._metric = metric
    self._runs_of = runs_of
    self._at_once = at_once
    self._failed = optuna.trial.TrialState.FAIL
    self._running = optuna.trial.TrialState.RUNNING
    self._distributions = _distributions(search)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directory.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(directory / JOURNAL)))
    known = optuna.study.get_all_study_names(storage)
    # Trials that were asked before have used up numbers of their own: none is drawn twice.
    asked = len(optuna.load_study(study_name="sweep", storage=storage).trials) if known else 0
    self._study = optuna.create_study(
      study_name="sweep",
      storage=storage,
      load_if_exists=True,
      direction="maximize" if search.goal == "max" else "minimize",
      sampler=optuna.samplers.TPESampler(seed=search.seed + asked),
    )
    self._require_same()
    self._open: dict[int, set[Run]] = {}
    self._left_open = [t.number for t in self._study.trials if t.state == self._running]

  def points(self) -> list[Point]:
    """The points of all trials so far."""
    return [self._point(trial.number, trial.params) for trial in self._study.trials]

  def best(self) -> Point | None:
    """That with the best value; None before there is one."""
    done = [trial for trial in self._study.trials if trial.value is not None]
    if not done:
      return None
    best = self._study.best_trial
    return self._point(best.number, best.params)

  def take(self) -> list[Run]:
    """The runs of the next trial: one left open earlier, or a new one."""
    if len(self._open) >= self._at_once:
      return []
    if self._left_open:
      number = self._left_open.pop(0)
      params = self._study.trials[number].params
    elif len(self._study.trials) < self._search.trials:
      trial = self._study.ask(self._distributions)
      number, params = trial.number, trial.params
    else:
      return []
    found = self._runs_of(self._point(number, params))
    self._open[number] = set(found)
    return found

  def ended(self, run: Run) -> None:
    """Tells the sampler, once all runs of the trial are there."""
    for number, left in self._open.items():
      if run in left:
        left.discard(run)
        if not left:
          self._tell(number, self._runs_of(run.point))
          del self._open[number]
        return

  def _tell(self, number: int, whole: Sequence[Run]) -> None:
    values = [
      runs.figures(run).get(self._metric, math.nan)
      for run in whole
      if runs.state(run) == runs.COMPLETE
    ]
    if len(values) == len(whole) and all(map(math.isfinite, values)):
      self._study.tell(number, statistics.mean(values))
    else:
      self._study.tell(number, state=self._failed)

  def _point(self, number: int, params: dict[str, Any]) -> Point:
    overrides = {}
    for key, value in params.items():
      where = self._search.space[key]
      # Optuna keeps names alone of values.
      overrides[key] = named(key, where.values)[value] if isinstance(where, Choice) else value
    return Point(f"trial_{number:03d}", overrides, {})

  def _require_same(self) -> None:
    """A journal is of one space, one goal and one metric; more trials of it may be asked."""
    spaces = {key: repr(where) for key, where in self._search.space.items()}
    ours = json.dumps([spaces, self._search.goal, self._metric])
    theirs = self._study.user_attrs.get("search")
    if theirs is None:
      self._study.set_user_attr("search", ours)
    elif theirs != ours:
      raise ConfigError(
        "the journal is of a search in another space or for something else; set the description "
        "back, or give another --directory"
      )


def _distributions(search: Search) -> dict[str, Any]:
  from optuna import distributions

  found: dict[str, Any] = {}
  for key, where in search.space.items():
    match where:
      case Uniform(low, high):
        found[key] = distributions.FloatDistribution(low, high)
      case LogUniform(low, high):
        found[key] = distributions.FloatDistribution(low, high, log=True)
      case Choice(values):
        found[key] = distributions.CategoricalDistribution(list(named(key, values)))
  return found
