"""Runs as jobs of a Slurm cluster: an array of them, by submitit.

The checkout, the experiment's data and the runs' directory are on a file system that all nodes
share. A job is one process; one that is preempted, or whose time is up, has its run save, and is
queued again.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.process import Process, run_to_end
from launch.runs import INTERRUPTED, RUNNING, Attempt, Run, state
from research.core.config import ConfigError


class Slurm:
  """All runs at once, of which Slurm runs `parallel` at a time.

  Args:
    folder: of submitit's files.
    parallel: runs at a time; None: as many as the cluster has room for.
    parameters: of submitit's executor, as {"timeout_min": 60, "slurm_partition": "gpu"}.
    cluster: of submitit; "local" makes processes of this machine, for tests.

  Raises:
    ConfigError: submitit or Slurm is missing, or it does not know a parameter.
  """

  at_once: int | None = None

  def __init__(
    self,
    folder: Path,
    parallel: int | None,
    parameters: Mapping[str, Any],
    cluster: str = "slurm",
  ):
    try:
      import submitit
    except ImportError:
      raise ConfigError('--on=slurm needs submitit: pip install -e ".[slurm]"') from None
    self._errors = (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError)
    self.poll_seconds = 0.1 if cluster == "local" else 5.0
    array = {"slurm_array_parallelism": parallel} if parallel else {}
    try:
      self._executor = submitit.AutoExecutor(folder, cluster=cluster)
      self._executor.update_parameters(**{**array, **parameters})
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
      raise ConfigError(f"--on=slurm: {' '.join(str(error).split())}") from error
    self._jobs: dict[Run, Any] = {}
    self._cancelled = False

  def start(self, runs: Sequence[Run]) -> None:
    """Queues them as one array."""
    with self._executor.batch():
      jobs = [self._executor.submit(_Job(run, run.command(), str(Path.cwd()))) for run in runs]
    self._jobs.update(zip(runs, jobs, strict=True))

  def ended(self) -> list[tuple[Run, Attempt]]:
    """Those whose job is over."""
    found = []
    for run, job in list(self._jobs.items()):
      # What was cancelled may still be saving, beyond its job.
      if job.done() and not (self._cancelled and state(run) == RUNNING):
        del self._jobs[run]
        found.append((run, self._result(job)))
    return found

  def stop(self, signum: int) -> None:
    """Cancels the jobs: Slurm sends SIGTERM, and by its `KillWait` SIGKILL."""
    del signum
    self._cancelled = True
    for job in self._jobs.values():
      job.cancel(check=False)

  def kill(self) -> None:
    """As `stop`: Slurm does not wait for long."""
    self.stop(signal.SIGKILL)

  def close(self) -> None:
    """Nothing is held."""

  def _result(self, job: Any) -> Attempt:
    try:
      return job.result()
    except self._errors as error:
      if self._cancelled:
        return Attempt(INTERRUPTED[1], 0.0, "")
      lines = [line for line in str(error).splitlines() if line.strip()]
      return Attempt(1, 0.0, f"job {job.job_id} is {job.state}: {lines[-1].strip()}")


class _Job:
  """What a job does; submitit calls it there, and `checkpoint` when the job must end early."""

  def __init__(self, run: Run, command: Sequence[str], directory: str):
    self._run = run
    self._command = command
    self._directory = directory
    self._process: Process | None = None

  def __call__(self) -> Attempt:
    return run_to_end(self._run, self._command, self._directory, self._keep)

  def checkpoint(self) -> Any:
    """Has the run save, and the job queued again."""
    import submitit

    if self._process:
      self._process.send(signal.SIGTERM)
      while state(self._run) == RUNNING:
        time.sleep(0.1)
    return submitit.helpers.DelayedSubmission(_Job(self._run, self._command, self._directory))

  def _keep(self, process: Process) -> None:
    self._process = process
