"""The devices that are planned for: those of a TPU topology that nobody has here."""

from __future__ import annotations

import os
import re
from importlib import metadata, util
from typing import Any

import jax
from jax.experimental import topologies

# libtpu looks for the machine that it runs on, asks a server for it, and takes a lock, so that two
# programs do not share a TPU. To compile there is no TPU to share.
_ENVIRONMENT = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
}
# As Google Cloud names them -> as libtpu does.
_NAMES = {"7x": "tpu7x"}


def devices(name: str) -> list[Any]:
  """The devices of a topology such as "v5e:4x4" or "v5p:4x4x4", for `core.sharding.make_mesh`.

  Raises:
    ValueError: libtpu is not installed, is not the one for this JAX, or has no such topology.
  """
  _require_libtpu(name)
  kind, _, sizes = name.partition(":")
  if not sizes.replace("x", "").isdigit():
    raise ValueError(
      f"topology {name!r} is no name such as v5e:4x4, v5p:4x4x4, v6e:8x8 or 7x:4x4x4"
    )
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  options: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}
  if set(sizes.split("x")) == {"1"}:
    options["chips_per_host_bounds"] = (1, 1, 1)
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{_NAMES.get(kind, kind)}:{sizes}", **options
    )
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f"libtpu has no topology {name!r}: {str(error).splitlines()[0]}") from error
  return list(found.devices)


def _require_libtpu(name: str) -> None:
  """Raises ValueError unless libtpu is the one that JAX names: others end the process."""
  remedy = "pip install 'jax[tpu]'"
  if util.find_spec("libtpu") is None:
    raise ValueError(
      f"to compile for {name} takes the package libtpu, which is not installed: {remedy}"
    )
  told = " ".join(metadata.requires("jax") or ())
  wanted = re.search(r"libtpu==([\d.]+?)(\.\*)?(?![\d.])", told)
  found = metadata.version("libtpu")
  if wanted and f"{found}.".partition(f"{wanted[1]}.")[0]:
    raise ValueError(f"libtpu is {found}, and JAX {jax.__version__} needs {wanted[1]}: {remedy}")
