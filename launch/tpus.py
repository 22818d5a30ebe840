"""TPU slices by the names that Cloud TPU gives them, and what GKE calls their parts.

Sources: "Plan TPUs in GKE" (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus) for
topologies, machine types and labels; "TPU software versions" (cloud.google.com/tpu/docs/runtimes)
for runtimes; the pages of each generation for how accelerator types count: v4 and v5p count
TensorCores, two a chip, v5e and v6e chips. They agree with AI-Hypercomputer/xpk's
`system_characteristics.py`, but for slices of 2x4, which xpk takes as two hosts of four chips and
Cloud TPU, like this table, as one of eight.
"""

from __future__ import annotations

import dataclasses
import math

from research.core import tree
from research.core.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Slice:
  """Invariant: `hosts * chips_per_host` is the product of the topology.

  Attributes:
    name: Cloud TPU's accelerator type, as "v5litepod-16".
    topology: chips along each axis, as "4x4".
    hosts: machines.
    chips_per_host: of each.
    accelerator: GKE's `cloud.google.com/gke-tpu-accelerator`.
    machine: the hosts' machine type in GKE.
    runtime: Cloud TPU's software version for JAX.
  """

  name: str
  topology: str
  hosts: int
  chips_per_host: int
  accelerator: str
  machine: str
  runtime: str


@dataclasses.dataclass(frozen=True)
class _Generation:
  """`one_host`: the most chips of a slice that is one machine; larger ones have four a machine."""

  accelerator: str
  machine: str
  runtime: str
  counted_per_chip: int
  one_host: int
  topologies: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

_GENERATIONS = {
  "v4": _Generation("tpu-v4-podslice", "ct4p-hightpu", "tpu-ubuntu2204-base", 2, 4, _CUBES),
  "v5litepod": _Generation(
    "tpu-v5-lite-podslice", "ct5lp-hightpu", "v2-alpha-tpuv5-lite", 1, 8, _FLAT
  ),
  "v5p": _Generation("tpu-v5p-slice", "ct5p-hightpu", "v2-alpha-tpuv5", 2, 4, _CUBES),
  "v6e": _Generation("tpu-v6e-slice", "ct6e-standard", "v2-alpha-tpuv6e", 1, 8, _FLAT),
}


def _slices() -> dict[str, Slice]:
  found = {}
  for generation, of in _GENERATIONS.items():
    for topology in of.topologies:
      chips = math.prod(map(int, topology.split("x")))
      each = chips if chips <= of.one_host else 4
      name = f"{generation}-{chips * of.counted_per_chip}"
      found[name] = Slice(
        name, topology, chips // each, each, of.accelerator, f"{of.machine}-{each}t", of.runtime
      )
  return found


SLICES = _slices()


def slice_of(name: str) -> Slice:
  """The slice of this accelerator type.

  Raises:
    ConfigError: there is none.
  """
  if name not in SLICES:
    raise ConfigError(f"--tpu={name}: there is no such slice{tree.nearest(name, SLICES)}")
  return SLICES[name]
