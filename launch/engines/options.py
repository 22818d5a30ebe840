"""The command line's part of the engines: their options, and an engine made of them."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import tpus
from launch.engines import Engine, gke, local, ray, slurm, tpu_vm
from launch.runs import Run
from research.core.config import ConfigError

ENGINES = ("local", "ray", "slurm", "gke", "tpu_vm")

# What an engine takes of the options below; any other that is given is told.
_TAKES = {
  "local": {"cpu_sets"},
  "ray": {"address", "cpus", "gpus", "tpus"},
  "slurm": {"slurm"},
  "gke": {"tpu", "image", "workdir", "bucket", "namespace", "service_account", "spot"},
  "tpu_vm": {"tpu", "zone", "project", "setup", "checkout", "bucket", "spot"},
}
_NEEDS = {"gke": ("tpu", "image", "bucket"), "tpu_vm": ("tpu", "zone", "setup")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds `--on` and each engine's options."""
  parser.add_argument("--on", choices=ENGINES, default="local", help="where runs run (local)")
  parser.add_argument(
    "--parallel", type=int, metavar="N", help="runs at a time (local, tpu_vm: 1; else no limit)"
  )
  group = parser.add_argument_group("local")
  group.add_argument("--cpu_sets", action="store_true", help="each run has CPUs of its own")
  group = parser.add_argument_group('ray (the extra "ray")')
  group.add_argument("--address", metavar="HOST:PORT", help="of a cluster (one here)")
  group.add_argument("--cpus", type=float, metavar="N", help="a run asks for (1)")
  group.add_argument("--gpus", type=float, metavar="N", help="a run asks for (0)")
  group.add_argument("--tpus", type=float, metavar="N", help="chips a run asks for (0)")
  group = parser.add_argument_group('slurm (the extra "slurm")')
  group.add_argument(
    "--slurm",
    action="append",
    metavar="KEY=VALUE",
    help="a parameter of submitit's executor: timeout_min=60, gpus_per_node=1, "
    "slurm_partition=NAME; may be repeated",
  )
  group = parser.add_argument_group('gke (the extra "gke") and tpu_vm')
  group.add_argument("--tpu", metavar="TYPE", help=f"a run's slice: {', '.join(tpus.SLICES)}")
  group.add_argument(
    "--bucket", metavar="NAME", help="mounted at the first part of the runs' directory"
  )
  group.add_argument("--spot", action="store_true", help="machines that may be taken away")
  group = parser.add_argument_group("gke")
  group.add_argument("--image", help="the container's, with the checkout and what it needs")
  group.add_argument("--workdir", metavar="DIR", help="of the checkout in the image (/research)")
  group.add_argument("--namespace", metavar="NAME", help="of Kubernetes (default)")
  group.add_argument(
    "--service_account", metavar="NAME", help="of Kubernetes, that may write to the bucket"
  )
  group = parser.add_argument_group("tpu_vm")
  group.add_argument("--zone", help="of Cloud TPU")
  group.add_argument("--project", help="of Google Cloud (gcloud's own)")
  group.add_argument(
    "--setup", metavar="COMMAND", help="what each host runs first, which brings the checkout"
  )
  group.add_argument(
    "--checkout", metavar="DIR", help="where that puts it, in the home directory (research)"
  )


def require_fitting(args: argparse.Namespace) -> None:
  """Checks that an engine has the options it needs, and no other's.

  Raises:
    ConfigError: one lacks, or is of no use.
  """
  for name in sorted(set().union(*_TAKES.values()) - _TAKES[args.on]):
    if getattr(args, name) not in (None, False):
      engines = ", ".join(engine for engine, takes in _TAKES.items() if name in takes)
      raise ConfigError(f"--{name} is of {engines}, not of --on={args.on}")
  for name in _NEEDS.get(args.on, ()):
    if not getattr(args, name):
      raise ConfigError(f"--on={args.on} needs --{name}")


def build(args: argparse.Namespace, root: Path, sweep: str) -> tuple[Engine, int]:
  """The engine, and how often the driver tries a run on it.

  Args:
    args: of the command line.
    root: the sweep's directory.
    sweep: its name.

  Raises:
    ConfigError: it cannot be here.
  """
  if args.on == "ray":
    asked = (1.0 if args.cpus is None else args.cpus, args.gpus or 0.0, args.tpus or 0.0)
    return ray.Ray(args.address or "", args.parallel, *asked), args.tries
  if args.on == "slurm":
    return slurm.Slurm(root / "slurm", args.parallel, _parameters(args.slurm or [])), args.tries
  if args.on == "gke":
    return _gke(args, root, sweep), 1  # a JobSet starts its pods again itself
  at_once = args.parallel or 1
  if args.on == "tpu_vm":
    return tpu_vm.TpuVm(at_once, _scripts(args, root)), args.tries
  return local.Local(at_once, local.cpu_sets(at_once) if args.cpu_sets else ()), args.tries


def render(args: argparse.Namespace, root: Path, sweep: str, runs: Sequence[Run]) -> str:
  """What would be run, as text: commands, manifests or scripts."""
  if args.on == "gke":
    return _gke(args, root, sweep).render(runs)
  if args.on == "tpu_vm":
    scripts = _scripts(args, root)
    return "\n".join(f"# {run.name}\n{scripts.render(run)}" for run in runs)
  return "".join(f"{shlex.join(run.command('python'))}\n" for run in runs)


def _gke(args: argparse.Namespace, root: Path, sweep: str) -> gke.Gke:
  return gke.Gke(
    tpus.slice_of(args.tpu),
    image=args.image,
    workdir=args.workdir or "/research",
    bucket=args.bucket,
    namespace=args.namespace or "default",
    service_account=args.service_account or "",
    spot=args.spot,
    root=root,
    sweep=sweep,
    tries=args.tries,
    parallel=args.parallel,
  )


def _scripts(args: argparse.Namespace, root: Path) -> tpu_vm.Scripts:
  return tpu_vm.Scripts(
    tpus.slice_of(args.tpu),
    zone=args.zone,
    project=args.project or "",
    setup=args.setup,
    directory=args.checkout or "research",
    bucket=args.bucket or "",
    spot=args.spot,
    root=root,
  )


def _parameters(given: Sequence[str]) -> dict[str, Any]:
  """`KEY=VALUE`s, the values numbers where they are such."""
  found = {}
  for each in given:
    key, equals, value = each.partition("=")
    if not equals:
      raise ConfigError(f"--slurm={each} is not KEY=VALUE")
    try:
      found[key] = json.loads(value)
    except json.JSONDecodeError:
      found[key] = value
  return found
