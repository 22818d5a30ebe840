"""What accelerators can do by their makers' data sheets, for one device of JAX.

Of TPUs the numbers are those of Google Cloud's pages on each version ("System architecture",
"TPU v4", "TPU v5e", "TPU v5p", "TPU v6e", "TPU7x"), a chip, and halved where JAX has two devices a
chip (7x). The clock is what makes the matrix units'
128 x 128 (256 x 256 from v6e on) multiply-adds a cycle the peak; with it the compiler's estimates
for a large product come to 87 to 97 % of the peak on all of these. NVIDIA's are of the SXM boards.
"""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
  """One device.

  kind: as in `jax.Device.device_kind`, which begins so.
  flops: dense bfloat16 FLOP/s.
  memory: bytes of HBM. bandwidth: of it, bytes/s.
  links: bytes/s that all interconnect links of the device send together.
  clock: Hz of its matrix units; 0 where it is not used.
  per_chip: devices of JAX on a chip, which is what is priced.
  """

  kind: str
  flops: float
  memory: float
  bandwidth: float
  links: float
  clock: float = 0.0
  per_chip: int = 1


_GIB = 2**30

# The first whose kind a device's begins with counts.
CHIPS = (
  Chip("TPU v4", 275e12, 32 * _GIB, 1228e9, 300e9, 1.05e9),
  Chip("TPU v5 lite", 197e12, 16 * _GIB, 819e9, 200e9, 1.5e9),
  Chip("TPU v5", 459e12, 95 * _GIB, 2765e9, 600e9, 1.75e9),
  Chip("TPU v6 lite", 918e12, 32 * _GIB, 1640e9, 448e9, 1.75e9),
  Chip("TPU7x", 1153.5e12, 96 * _GIB, 3690e9, 600e9, 2.2e9, 2),
  Chip("NVIDIA A100", 312e12, 80 * _GIB, 2039e9, 600e9),
  Chip("NVIDIA H100", 989e12, 80 * _GIB, 3350e9, 900e9),
  Chip("NVIDIA H200", 989e12, 141 * _GIB, 4800e9, 900e9),
)


def find(device_kind: str) -> Chip | None:
  """The chip of a device, None if its data sheet is not here."""
  return next((chip for chip in CHIPS if device_kind.startswith(chip.kind)), None)
