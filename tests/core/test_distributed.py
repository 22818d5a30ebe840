"""How a process learns that it is one of several; `tests/test_processes.py` runs some."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from research.core import distributed
from research.core.config import ConfigError
from research.core.distributed import Membership

TOLD = ["--coordinator=host:123", "--processes=4", "--process=3"]
VARIABLES = {
  "JAX_COORDINATOR_ADDRESS": "host:123",
  "JAX_NUM_PROCESSES": "4",
  "JAX_PROCESS_ID": "0",
}


def test_flags():
  rest, member = distributed.take_flags(["--config=x.py", *TOLD, "--traceback"])
  assert rest == ["--config=x.py", "--traceback"]
  assert member == Membership("host:123", 4, 3)
  assert distributed.take_flags(["--config=x.py"]) == (["--config=x.py"], None)
  assert distributed.take_flags(["--distributed", "a"]) == (["a"], Membership())


@pytest.mark.parametrize(
  ("variables", "expected"),
  [
    ({}, None),
    (VARIABLES, Membership("host:123", 4, 0)),
    ({"SLURM_STEP_NUM_TASKS": "2"}, Membership()),
    ({"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_SIZE": "1"}, None),
    ({"OMPI_COMM_WORLD_SIZE": "8"}, Membership()),
    ({"TPU_WORKER_HOSTNAMES": "a.svc,b.svc"}, Membership()),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ({"MEGASCALE_NUM_SLICES": "2"}, Membership()),
  ],
)
def test_environments(variables, expected):
  assert distributed.of_environment(variables) == expected


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (TOLD[:2], "--process= is missing"),
    (["--coordinator=host", *TOLD[1:]], "--coordinator= is 'host', not HOST:PORT"),
    ([*TOLD[:2], "--process=4"], "--process= is '4' of '4' processes; they count from 0"),
  ],
)
def test_wrong_flags_are_errors(flags, said):
  with pytest.raises(ConfigError, match=said):
    distributed.take_flags(flags)


def test_a_missing_variable_is_an_error():
  with pytest.raises(ConfigError, match="JAX_PROCESS_ID is missing"):
    distributed.of_environment({**VARIABLES, "JAX_PROCESS_ID": ""})


def test_processes_that_have_met_are_left_as_they_are(monkeypatch):
  joined = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: joined.append(args))
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: bool(joined))
  for _ in range(2):
    distributed.join(distributed.Membership("host:1", 2, 1))
  assert joined == [("host:1", 2, 1)]


def test_a_single_process_blames_nobody(monkeypatch):
  with pytest.raises(ValueError, match="mine"), distributed.blaming_others():
    raise ValueError("mine")
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  said = "process 0 of 2 stopped, as another may have: theirs"
  with pytest.raises(ConnectionError, match=said), distributed.blaming_others():
    raise ValueError("theirs")
  with pytest.raises(ConfigError, match="^ours"), distributed.blaming_others():
    raise ConfigError("ours")


@pytest.fixture
def third(monkeypatch):
  """Makes this process the first of three, of which the second tells the same; [the third's]."""
  told = []
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  monkeypatch.setattr(distributed, "of_each", lambda own: [own, own, *told])
  return told


def _other(monkeypatch, tell):
  """What a process would tell the others."""
  said = []
  with monkeypatch.context() as patched:
    patched.setattr(distributed, "of_each", lambda own: said.append(own) or [own])
    tell()
  return said


ALIKE = {"mesh": {"fsdp": 2, "data": 1}, "rows": list(range(100)), "seed": 1}


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"mesh": {"fsdp": 3, "data": 1}}, "mesh.fsdp is 2 in process 0 and 3 in process 2$"),
    ({"rows": list(range(99))}, "rows is 100 long, .* in process 0 and 99 long, .* in process 2$"),
    ({"rows": [*range(99), 0]}, "rows is 100 long, .* in process 0 and 100 long, .* in process 2$"),
    ({"name": "x"}, 'name is not there in process 0 and "x" in process 2$'),
  ],
)
def test_what_differs_is_named_with_its_process(third, monkeypatch, change, said):
  third[:] = _other(monkeypatch, lambda: distributed.require_same(ALIKE | change, "it"))
  with pytest.raises(ConfigError, match=f"it differs between processes: {said}"):
    distributed.require_same(ALIKE, "it")
  third[:] = _other(monkeypatch, lambda: distributed.require_same(ALIKE, "it"))
  distributed.require_same(ALIKE, "it")


@pytest.mark.parametrize("kind", [ValueError, OSError, RuntimeError])
def test_a_process_that_fails_stops_the_others(third, monkeypatch, kind):
  def read(fails):
    with distributed.alike("the data") as told:
      told |= {"rows": 3, "words": lambda: "a word " * 100}
      if fails:
        raise kind("no disk\nhere")

  def fail():
    with pytest.raises(kind, match="no disk"):
      read(True)

  third[:] = _other(monkeypatch, fail)
  with pytest.raises(ConfigError, match="^the data: process 2 stopped: no disk here$"):
    read(False)
  third[:] = _other(monkeypatch, lambda: read(False))
  assert third == [{"read": {"rows": "3", "words": third[0]["read"]["words"]}}]
  assert third[0]["read"]["words"].startswith("700 long, of hash ")
  read(False)


def test_each_process_tells_what_fits_its_length(monkeypatch):
  assert distributed.of_each({"a": 1}) == [{"a": 1}]
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  longer = np.frombuffer(b'"longer"', np.uint8)
  # The other process has a longer text, to whose length this one has to fill its own.
  theirs = iter([np.int32(len(longer)), longer])
  gather = lambda own: np.stack([own, next(theirs)])  # noqa: E731
  monkeypatch.setattr(multihost_utils, "process_allgather", gather)
  assert distributed.of_each([1]) == [[1], "longer"]
