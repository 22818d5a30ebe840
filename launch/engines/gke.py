"""Runs as JobSets on TPU slices of a GKE cluster, by kubectl.

The runs' directory is a bucket, mounted on every host; what is small of it comes back here when a
run is complete. JobSets outlive this process: the same command finds those that are there.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import names
from launch.engines import jobset
from launch.runs import Attempt, Run
from launch.tpus import Slice
from research.core.config import ConfigError

_FORGIVEN = 30  # questions in a row that the cluster may leave without an answer


class Gke:
  """JobSets, all at once or `parallel` at a time; the cluster queues what it has no slice for.

  Args:
    tpu: the slice of each run.
    image, workdir, bucket, namespace, service_account, spot: see `jobset.manifest`.
    root: the sweep's directory, of which the first part is where the bucket is mounted.
    sweep: its name.
    tries: how often a run is started, by the JobSet itself.
    parallel: the most at a time; None: no limit.

  Raises:
    ConfigError: the runs' directory is not within the working directory.
  """

  poll_seconds = 10.0

  def __init__(
    self,
    tpu: Slice,
    *,
    image: str,
    workdir: str,
    bucket: str,
    namespace: str,
    service_account: str,
    spot: bool,
    root: Path,
    sweep: str,
    tries: int,
    parallel: int | None,
  ):
    if root.is_absolute() or ".." in root.parts:
      raise ConfigError(f"--on=gke: {root} is not within the working directory, as in the image")
    self.at_once = parallel
    self._tpu = tpu
    self._mounted = root.parts[0]
    self._bucket = bucket
    self._namespace = namespace
    self._label = names.label(sweep)
    self._settings: dict[str, Any] = {
      "tpu": tpu,
      "image": image,
      "workdir": workdir,
      "mounted": self._mounted,
      "bucket": bucket,
      "sweep": self._label,
      "namespace": namespace,
      "restarts": tries - 1,
      "service_account": service_account,
      "spot": spot,
    }
    self._running: dict[Run, float] = {}
    self._unanswered = 0
    self._stopped: list[tuple[Run, Attempt]] = []

  def render(self, runs: Sequence[Run]) -> str:
    """The manifests, as they are applied: YAML, with what node pool they need."""
    import yaml

    tpu = self._tpu
    needed = f"# node pool: {tpu.machine}, topology {tpu.topology}, {tpu.hosts} nodes\n"
    return needed + yaml.safe_dump_all(map(self._manifest, runs), sort_keys=False)

  def start(self, runs: Sequence[Run]) -> None:
    """Applies those that are not there; those that failed are replaced."""
    there = self._there()
    fresh = []
    for run in runs:
      name = names.of_run(run)
      if _terminal(there.get(name)) == "Failed":
        self._kubectl("delete", "jobset", name, "--wait=true")
      if name not in there or _terminal(there[name]) == "Failed":
        fresh.append(run)
      self._running[run] = time.monotonic()
    if fresh:
      self._kubectl("apply", "--filename=-", text=self.render(fresh))

  def ended(self) -> list[tuple[Run, Attempt]]:
    """Those whose JobSet has come to an end, the figures of complete ones fetched."""
    found, self._stopped = self._stopped, []
    if not self._running:
      return found
    try:
      there = self._there()
      self._unanswered = 0
    except ConfigError:
      # A cluster that does not answer for a while runs on.
      self._unanswered += 1
      if self._unanswered > _FORGIVEN:
        raise
      return found
    for run, started in list(self._running.items()):
      name = names.of_run(run)
      end = _terminal(there.get(name))
      if end or name not in there:
        del self._running[run]
        seconds = time.monotonic() - started
        found.append((run, self._attempt(run, name, there.get(name), end, seconds)))
    return found

  def stop(self, signum: int) -> None:
    """Deletes the JobSets, whose pods get SIGTERM."""
    if self._running:
      self._kubectl("delete", "jobset", *map(names.of_run, self._running), "--ignore-not-found")
    self._stopped += [
      (run, Attempt(128 + signum, time.monotonic() - started, ""))
      for run, started in self._running.items()
    ]
    self._running = {}

  def kill(self) -> None:
    """Nothing is left to end: `stop` has deleted it."""

  def close(self) -> None:
    """Nothing is held."""

  def _manifest(self, run: Run) -> dict[str, Any]:
    return jobset.manifest(names.of_run(run), run.command("python"), **self._settings)

  def _there(self) -> dict[str, dict[str, Any]]:
    """The sweep's JobSets by name."""
    told = self._kubectl("get", "jobset", f"--selector=sweep={self._label}", "--output=json")
    return {item["metadata"]["name"]: item for item in json.loads(told)["items"]}

  def _attempt(
    self, run: Run, name: str, item: dict[str, Any] | None, end: str, seconds: float
  ) -> Attempt:
    if item is None:
      return Attempt(1, seconds, f"its JobSet {name} was deleted")
    if end == "Failed":
      message = next(c.get("message", "") for c in _conditions(item) if c["type"] == "Failed")
      logs = f"kubectl logs --selector=jobset.sigs.k8s.io/jobset-name={name}"
      return Attempt(1, seconds, f"JobSet {name} failed: {message} ({logs})")
    directory = run.directory.relative_to(self._mounted)
    run.directory.mkdir(parents=True, exist_ok=True)
    source, place = f"gs://{self._bucket}/{directory}", str(run.directory)
    flags = ("--recursive", "--exclude=.*checkpoints/.*")
    try:
      _call("gcloud", "storage", "rsync", source, place, *flags)
    except ConfigError as error:
      # The JobSet stays as it is: the same command asks for the figures again.
      return Attempt(1, seconds, f"JobSet {name} is complete, but {error}")
    return Attempt(0, seconds, "")

  def _kubectl(self, *arguments: str, text: str = "") -> str:
    return _call("kubectl", f"--namespace={self._namespace}", *arguments, text=text)


def _terminal(item: dict[str, Any] | None) -> str:
  """`Completed`, `Failed`, or "" of one that goes on or is not there."""
  for condition in _conditions(item or {}):
    if condition["type"] in ("Completed", "Failed") and condition["status"] == "True":
      return condition["type"]
  return ""


def _conditions(item: dict[str, Any]) -> list[dict[str, Any]]:
  return item.get("status", {}).get("conditions", [])


def _call(*command: str, text: str = "") -> str:
  """What a command prints.

  Raises:
    ConfigError: it is missing, or fails; by its last line.
  """
  try:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
  except FileNotFoundError:
    raise ConfigError(f"there is no command {command[0]!r} here") from None
  except subprocess.CalledProcessError as error:
    lines = [line for line in error.stderr.splitlines() if line.strip()] or [str(error)]
    raise ConfigError(f"{' '.join(command[:4])}: {lines[-1].strip()}") from error
  return done.stdout
