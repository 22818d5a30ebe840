"""Several processes as one run: how they find each other, and that they are of one mind.

Each process runs the same command. Where they are told by flags, or by `JAX_COORDINATOR_ADDRESS`,
`JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, those count; under SLURM (`srun`), Open MPI and on slices
of TPUs that name their hosts (GKE's JobSet), JAX reads the cluster's own variables. Who calls
`research.train.main` in processes that have met already, as Ray Train's `JaxTrainer` lets them, has
none of this to tell.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from research.core.config import ConfigError

# A process that was not heard of for so long is taken for dead, and the others end.
HEARTBEAT_SECONDS = 20
# How long processes wait for the last one to start.
START_SECONDS = 300
# Of what processes compare, longer values are told by a digest.
_SHOWN_CHARACTERS = 200

_FLAGS = ("coordinator", "processes", "process")


@dataclasses.dataclass(frozen=True)
class Membership:
  """One process of several: `0 <= process < processes`; coordinator: HOST:PORT of process 0.

  All None: JAX asks the cluster.
  """

  coordinator: str | None = None
  processes: int | None = None
  process: int | None = None


def take_flags(argv: Sequence[str]) -> tuple[list[str], Membership | None]:
  """What of `argv` is for others, and the membership that the rest tells; None if none does.

  `--coordinator=HOST:PORT --processes=N --process=I` tell it; `--distributed` says that the cluster
  does.

  Raises:
    ConfigError: some of the three are missing, or one is wrong.
  """
  told: dict[str, str] = {}
  rest: list[str] = []
  asks = False
  for flag in argv:
    if match := re.fullmatch(rf"--({'|'.join(_FLAGS)})=(.*)", flag):
      told[match[1]] = match[2]
    elif flag == "--distributed":
      asks = True
    else:
      rest.append(flag)
  if told:
    return rest, _membership({name: told.get(name) for name in _FLAGS}, "--{}=")
  return rest, Membership() if asks else None


def of_environment(environment: Mapping[str, str]) -> Membership | None:
  """The membership that variables tell; None for a process that runs alone.

  Raises:
    ConfigError: as `take_flags`.
  """
  names = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
  }
  told = {flag: environment.get(name) for flag, name in names.items()}
  if any(told.values()):
    return _membership(told, "{}", names)
  counts = (environment.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
  slices = environment.get("MEGASCALE_NUM_SLICES", "1")
  hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
  many = any(count not in ("", "1") for count in (*counts, slices)) or len(hosts) > 1
  return Membership() if many else None


def join(member: Membership) -> None:
  """Makes this process one of several, unless it is; before JAX's first computation.

  Raises:
    ConnectionError: the others, or the cluster's variables, were not found.
  """
  if jax.distributed.is_initialized():
    return
  try:
    jax.distributed.initialize(
      member.coordinator,
      member.processes,
      member.process,
      initialization_timeout=START_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    where = f" at {member.coordinator}" if member.coordinator else ""
    reason = " ".join(str(error).split())
    raise ConnectionError(f"the processes of this run did not meet{where}: {reason}") from error


@contextlib.contextmanager
def blaming_others() -> Iterator[None]:
  """Makes what fails between several processes a ConnectionError that says which one saw it.

  The one that failed first is named by JAX's coordination service, which ends all of them when it
  has missed its heartbeat.
  """
  try:
    yield
  except ConfigError:  # which is ours
    raise
  except (jax.errors.JaxRuntimeError, ValueError) as error:  # Gloo's are of the latter kind
    if jax.process_count() == 1:
      raise
    raise ConnectionError(
      f"process {jax.process_index()} of {jax.process_count()} stopped, as another may have:"
      f" {' '.join(str(error).split())}"
    ) from error


def of_first(value: Any) -> Any:
  """What `value`, fit for JSON, is on the first process; all processes have to call it."""
  if jax.process_count() == 1:
    return value
  told = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(told))))
  told = np.resize(told, size)  # only the first one's counts, and all must be of its size
  return json.loads(multihost_utils.broadcast_one_to_all(told).tobytes())


def everywhere(told: bool) -> bool:
  """Whether all processes tell True; all have to call it, and none goes on before the last."""
  return bool(np.all(multihost_utils.process_allgather(np.asarray(told))))


def of_each(value: Any) -> list[Any]:
  """What `value`, fit for JSON, is on each process, in their order; all have to call it.

  Raises:
    ConnectionError: another process is gone.
  """
  if jax.process_count() == 1:
    return [value]
  told = np.frombuffer(json.dumps(value).encode(), np.uint8)
  with blaming_others():
    sizes = multihost_utils.process_allgather(np.int32(len(told)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(told)] = told
    each = multihost_utils.process_allgather(padded)
  return [json.loads(row[:size].tobytes()) for row, size in zip(each, sizes, strict=True)]


def require_same(told: Mapping[str, Any], what: str) -> None:
  """Raises ConfigError unless `told`, fit for JSON, is the same on all processes, which call it.

  Args:
    what: of the values, for the message, which names the first that differs and where.
  """
  if jax.process_count() > 1:
    _require_same(of_each(_flat(told)), what)


@contextlib.contextmanager
def alike(what: str) -> Iterator[dict[str, Any]]:
  """Within, each process reads for itself; none goes on until all are known to have read the same.

  What a program's collectives depend on belongs in the dict that this gives, fit for JSON, or as a
  function that gives it where there are others to compare with. Where a process fails within, the
  others stop with what it says. Nothing within may wait for other processes.

  Raises:
    ConfigError: what was put in the dict differs, or another process failed.
  """
  told: dict[str, Any] = {}
  if jax.process_count() == 1:
    yield told
    return
  try:
    yield told
  except (ValueError, OSError, RuntimeError) as error:
    of_each({"failed": " ".join(str(error).split())})
    raise
  each = of_each({"read": _flat(told)})
  if failed := [i for i, other in enumerate(each) if "failed" in other]:
    raise ConfigError(f"{what}: process {failed[0]} stopped: {each[failed[0]]['failed']}")
  _require_same([other["read"] for other in each], what)


def _flat(told: Mapping[str, Any], before: str = "") -> dict[str, str]:
  """The values by dotted key, as JSON; of long ones the length and a digest."""
  found: dict[str, str] = {}
  for key, value in told.items():
    if isinstance(value, Mapping):
      found |= _flat(value, f"{before}{key}.")
      continue
    value = value() if callable(value) else value
    text = json.dumps(value, sort_keys=True)
    if len(text) > _SHOWN_CHARACTERS:
      digest = hashlib.sha256(text.encode()).hexdigest()
      text = f"{len(value)} long, of hash {digest[:16]},"
    found[f"{before}{key}"] = text
  return found


def _require_same(each: Sequence[Mapping[str, str]], what: str) -> None:
  first = each[0]
  for process, other in enumerate(each):
    for key in [*first, *other]:
      if first.get(key) != other.get(key):
        raise ConfigError(
          f"{what} differs between processes: {key} is {first.get(key, 'not there')} in process 0"
          f" and {other.get(key, 'not there')} in process {process}"
        )


def _membership(
  told: Mapping[str, str | None], form: str, names: Mapping[str, str] | None = None
) -> Membership:
  """Raises ConfigError unless all three are told and fit."""
  shown = {flag: form.format((names or {}).get(flag, flag)) for flag in _FLAGS}
  missing = [shown[flag] for flag in _FLAGS if not told[flag]]
  if missing:
    raise ConfigError(
      f"several processes need {', '.join(shown.values())}; {missing[0]} is missing"
    )
  coordinator, processes, process = (told[flag] or "" for flag in _FLAGS)
  if not re.fullmatch(r".+:\d+", coordinator):
    raise ConfigError(f"{shown['coordinator']} is {coordinator!r}, not HOST:PORT")
  if not (processes.isdigit() and process.isdigit() and int(process) < int(processes)):
    raise ConfigError(
      f"{shown['process']} is {process!r} of {processes!r} processes; they count from 0"
    )
  return Membership(coordinator, int(processes), int(process))
