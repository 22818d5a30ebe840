"""Runs as tasks of a Ray cluster, which may be many machines.

The checkout, the experiment's data and the runs' directory are at the same place on all of them.
Ray counts what each task asks for, and sets which GPUs or chips it sees.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.process import run_to_end
from launch.runs import INTERRUPTED, RUNNING, Attempt, Run, state
from research.core.config import ConfigError


class Ray:
  """All runs at once, or `parallel` at a time; Ray queues what it has no room for.

  Args:
    address: of a cluster; "": the one that RAY_ADDRESS names or that runs on this machine, else
      one that is started here and ends with the sweep.
    parallel: the most runs at a time; None: what fits.
    cpus, gpus, tpus: what a run asks for; tpus are chips.

  Raises:
    ConfigError: Ray is missing, or there is no cluster at the address.
  """

  poll_seconds = 0.2

  def __init__(self, address: str, parallel: int | None, cpus: float, gpus: float, tpus: float):
    try:
      import ray
    except ImportError:
      raise ConfigError('--on=ray needs Ray: pip install -e ".[ray]"') from None
    self._ray = ray
    self.at_once = parallel
    # Workers of a cluster that runs already import from where this process does.
    paths = ":".join(path for path in sys.path if path)
    try:
      ray.init(
        address=address or None,
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": {"PYTHONPATH": f"{Path.cwd()}:{paths}"}},
      )
    except (ConnectionError, ValueError) as error:
      raise ConfigError(f"--address={address}: {' '.join(str(error).split())}") from error
    needed = {"CPU": cpus, "GPU": gpus, "TPU": tpus}
    there = ray.cluster_resources()
    for kind, number in needed.items():
      if number > there.get(kind, 0):
        self.close()
        raise ConfigError(
          f"a run asks for {number:g} {kind}, and the whole Ray cluster has {there.get(kind, 0):g}"
        )
    more = {"TPU": tpus} if tpus else {}
    self._task = ray.remote(run_to_end).options(
      num_cpus=cpus, num_gpus=gpus, resources=more, max_retries=0
    )
    self._refs: dict[Run, Any] = {}

  def start(self, runs: Sequence[Run]) -> None:
    """Gives them to Ray."""
    for run in runs:
      self._refs[run] = self._task.remote(run, run.command(), str(Path.cwd()))

  def ended(self) -> list[tuple[Run, Attempt]]:
    """Those whose task is over."""
    if not self._refs:
      return []
    refs = list(self._refs.values())
    done, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
    found = []
    for run, ref in list(self._refs.items()):
      if ref in done and (told := self._result(run, ref)):
        del self._refs[run]
        found.append((run, told))
    return found

  def stop(self, signum: int) -> None:
    """Cancels the tasks; each passes SIGTERM on."""
    del signum
    for ref in self._refs.values():
      self._ray.cancel(ref)

  def kill(self) -> None:
    """Ends the workers, which does not end what they were asked to stop before."""
    for ref in self._refs.values():
      self._ray.cancel(ref, force=True)

  def close(self) -> None:
    """Leaves the cluster, and ends one that was started here."""
    self._ray.shutdown()

  def _result(self, run: Run, ref: Any) -> Attempt | None:
    try:
      return self._ray.get(ref)
    except self._ray.exceptions.TaskCancelledError:
      # The task is over for Ray when it is cancelled; the run may still be saving.
      return None if state(run) == RUNNING else Attempt(INTERRUPTED[1], 0.0, "")
    except self._ray.exceptions.RayError as error:
      return Attempt(1, 0.0, " ".join(str(error).split("\n")[0].split()))
