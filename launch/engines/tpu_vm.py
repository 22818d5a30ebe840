"""Runs on Cloud TPU VMs: each on a queued resource of its own, which a shell script sees through.

The scripts are processes of this machine, so that logs, tries, locks and signals are theirs.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from launch import names
from launch.engines.local import Local
from launch.runs import Run
from launch.tpus import Slice
from research.core.config import ConfigError

_SCRIPT = """\
set -euo pipefail
leave() {{
  {delete}
}}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
{create}
while true; do
  state=$({describe})
  case "$state" in
    ACTIVE) break ;;
    FAILED | SUSPENDING | SUSPENDED) echo "error: the queued resource is $state"; exit 1 ;;
  esac
  sleep 20 & wait $!
done
{setup} & wait $!
{train} & wait $!
{pack} & wait $!
{fetch}
tar --extract --gzip --file={archive}
rm {archive}
"""


class TpuVm(Local):
  """`at_once` scripts, each of which has a slice while it runs."""

  def __init__(self, at_once: int, scripts: Scripts):
    super().__init__(at_once, command=scripts.command)

  def kill(self) -> None:
    """Nothing: a script that was told to leave gives its slice back, which somebody pays for."""


class Scripts:
  """The script of a run: asks for a slice, waits, sets up, trains, fetches, and gives it back.

  A script that is told to leave gives its slice back, too. Without a bucket, what a run has done
  is lost with its machines.

  Args:
    tpu: the slice.
    zone, project: of Cloud TPU; an empty project is gcloud's own.
    setup: what each host runs first: it brings the checkout and what that needs.
    directory: of the checkout, within the home directory of each host.
    bucket: mounted there at the first part of the runs' directory, by gcsfuse; empty: none, which
      only a single host can do with.
    spot: machines that may be taken away.
    root: the sweep's directory.

  Raises:
    ConfigError: the runs' directory is not within the working directory, or several hosts have no
      bucket.
  """

  def __init__(
    self,
    tpu: Slice,
    *,
    zone: str,
    project: str,
    setup: str,
    directory: str,
    bucket: str,
    spot: bool,
    root: Path,
  ):
    if root.is_absolute() or ".." in root.parts:
      raise ConfigError(f"--on=tpu_vm: {root} is not within the working directory, as there")
    if tpu.hosts > 1 and not bucket:
      raise ConfigError(
        f"--tpu={tpu.name} has {tpu.hosts} hosts that share the runs' directory; it needs --bucket"
      )
    self._tpu = tpu
    self._where = [f"--zone={zone}", *([f"--project={project}"] if project else [])]
    self._setup = setup
    self._directory = directory
    self._bucket = bucket
    self._spot = spot
    self._mounted = root.parts[0]

  def command(self, run: Run) -> list[str]:
    """What runs the script."""
    return ["bash", "-c", self.render(run)]

  def render(self, run: Run) -> str:
    """The script."""
    name = names.of_run(run)
    archive = f"{name}.tar.gz"
    here = str(run.directory / archive)
    resource = ("gcloud", "compute", "tpus", "queued-resources")
    machine = ("gcloud", "compute", "tpus", "tpu-vm")
    together = ["--distributed"] if self._tpu.hosts > 1 else []
    train = shlex.join([*run.command("python3"), *together])
    if self._bucket:
      at = shlex.quote(self._mounted)
      mount = f"mkdir -p {at} && gcsfuse --implicit-dirs {shlex.quote(self._bucket)} {at}"
      train = f"{{ mountpoint -q {at} || {{ {mount}; }}; }} && {train}"
    pack = shlex.join(
      ["tar", "--create", "--gzip", f"--file={archive}", "--exclude=checkpoints"]
      + [str(run.directory)]
    )
    enter = f"cd {shlex.quote(self._directory)} && "

    def ssh(command: str, worker: str) -> str:
      return self._join(*machine, "ssh", name, f"--worker={worker}", f"--command={command}")

    return _SCRIPT.format(
      create=self._join(
        *resource,
        "create",
        name,
        f"--node-id={name}",
        f"--accelerator-type={self._tpu.name}",
        f"--runtime-version={self._tpu.runtime}",
        *(["--spot"] if self._spot else []),
      ),
      describe=self._join(*resource, "describe", name, "--format=value(state.state)"),
      delete=self._join(*resource, "delete", name, "--force", "--quiet"),
      setup=ssh(self._setup, "all"),
      train=ssh(enter + train, "all"),
      pack=ssh(enter + pack, "0"),
      fetch=self._join(*machine, "scp", f"{name}:{self._directory}/{archive}", here, "--worker=0"),
      archive=shlex.quote(here),
    )

  def _join(self, *words: str) -> str:
    return shlex.join([*words, *self._where])
