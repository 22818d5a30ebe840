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


def test_a_single_process_blames_nobody(monkeypatch):
  with pytest.raises(ValueError, match="mine"), distributed.blaming_others():
    raise ValueError("mine")
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  said = "process 0 of 2 stopped, as another may have: theirs"
  with pytest.raises(ConnectionError, match=said), distributed.blaming_others():
    raise ValueError("theirs")
  with pytest.raises(ConfigError, match="^ours"), distributed.blaming_others():
    raise ConfigError("ours")


def test_what_is_not_the_same_everywhere_is_an_error(monkeypatch):
  distributed.require_same(["a", "b"], "the items")
  gather = multihost_utils.process_allgather

  def of_three(own, tiled=False):
    one = gather(own, tiled=tiled)
    return np.stack([one, one, one + 1])

  monkeypatch.setattr(multihost_utils, "process_allgather", of_three)
  with pytest.raises(ConfigError, match="the items are others in process 2 than in process 0"):
    distributed.require_same(["a", "b"], "the items")
