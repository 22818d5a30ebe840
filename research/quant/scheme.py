"""How numbers are held in few bits: the grid, and who shares a scale."""

from __future__ import annotations

import dataclasses
import re

from research.core.tree import nearest
from research.quant.codebooks import CODEBOOKS
from research.quant.packing import unit

FLOATS = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}
INTEGERS = ("int8", "int4", "int3", "int2")
KINDS = (*INTEGERS, *CODEBOOKS, *FLOATS)
TENSOR = -1  # a group of the whole matrix
FITS = ("whole", "mse")
RANGES = ("row", "absmax", "average", "percentile", "mse")
SCALES = ("float32", "float16", "bfloat16", "double")


@dataclasses.dataclass(frozen=True)
class Scheme:
  """A grid of numbers, and scales that stretch it.

  kind: "int8", "int4", "int3", "int2": evenly spaced; "nf4" (Dettmers et al. 2023,
    arXiv:2305.14314, appendix E) and "fp4": tables of 16; "e4m3", "e5m2": 8-bit floats.
  group: how many successive inputs of an output share a scale; 0 is all of them, -1 all of the
    matrix.
  symmetric: whether an integer of 0 is the number 0, and scales are `absmax / (2^bits - 1) * 2`;
    otherwise each group has a zero point and covers its least and largest number, and 0.
  scales: the type of scales, or "double": they are held in 8 bits each (QLoRA's double
    quantization, arXiv:2305.14314, section 3).
  fit: what of a group's range the grid covers: "whole", or "mse", the share of it by which the sum
    of squared errors is least (what is outside is clipped); by GPTQ with groups that are known
    before, each input's errors count by the sum of its squares.
  activations: "int8" rounds what is multiplied by the numbers, row by row, and multiplies integers
    (W8A8); for "int8" with a scale an output.
  outliers: of rounded activations, so many inputs, those with the largest numbers of a batch, are
    multiplied as they are (LLM.int8: Dettmers et al. 2022, arXiv:2208.07339, section 3.2, which
    takes those with a number from 6 on; how many must be known to compile).
  range: where the scale of rounded activations comes from: "row", each row's largest number; or one
    scale for all, fixed by calibration: "absmax", the largest number; "average", the mean of
    batches' largest; "percentile", the number that so many are below or at; "mse", that of the
    least sum of squared errors. What is outside is clipped, and
    gradients are as if it were not.
  percentile: of `range` "percentile".
  gradients: "int8" does so, by chance up or down, with the gradients that go back through them.

  Raises:
    ValueError: there is no such scheme.
  """

  kind: str
  group: int = 0
  symmetric: bool = True
  scales: str = "float32"
  fit: str = "whole"
  activations: str = ""
  outliers: int = 0
  range: str = "row"
  percentile: float = 99.99
  gradients: str = ""

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f"kind {self.kind!r} is unknown{nearest(self.kind, KINDS)}; {_these(KINDS)}")
    if self.scales not in SCALES:
      raise ValueError(
        f"scales {self.scales!r} are unknown{nearest(self.scales, SCALES)}; {_these(SCALES)}"
      )
    if self.fit not in FITS:
      raise ValueError(f"fit {self.fit!r} is unknown{nearest(self.fit, FITS)}; {_these(FITS)}")
    if self.group < TENSOR:
      raise ValueError(f"group {self.group}: sizes start at 1; 0 is a channel, -1 the whole matrix")
    if not self.symmetric and self.kind not in INTEGERS:
      raise ValueError(f"{self.kind} has no zero point: symmetric=False is for integers")
    if self.kind in CODEBOOKS and self.group <= 0:
      raise ValueError(f"{self.kind} is held in groups; give a group, as of 64")
    if self.group > 0 and self.group % unit(self.bits):
      raise ValueError(
        f"a group of {self.group} {self.kind} numbers fills no whole bytes; {unit(self.bits)} do"
      )
    for name in ("activations", "gradients"):
      if getattr(self, name) not in ("", "int8"):
        raise ValueError(f"{name} {getattr(self, name)!r} are unknown; there is int8, or none")
    if (self.activations or self.gradients) and not self.has_channels:
      raise ValueError("products of integers are for symmetric int8 without groups")
    if self.outliers < 0 or (self.outliers and not self.activations):
      raise ValueError(
        f"outliers {self.outliers}: how many inputs of rounded activations stay whole"
      )
    if self.range not in RANGES:
      raise ValueError(
        f"range {self.range!r} is unknown{nearest(self.range, RANGES)}; {_these(RANGES)}"
      )
    if self.is_static and (not self.activations or self.outliers):
      raise ValueError(
        f"range {self.range!r} is of rounded activations, and without outliers, which every batch"
        " has its own of"
      )
    if self.range != "percentile" and self.percentile != Scheme.percentile:
      raise ValueError(f"percentile {self.percentile} is of range 'percentile'")
    if not 0 < self.percentile <= 100:
      raise ValueError(f"percentile {self.percentile} is not above 0 and at most 100")
    if self.gradients and not self.activations:
      raise ValueError("gradients in int8 are for products whose activations are, too")
    if self.scales == "double" and (self.group <= 0 or not self.symmetric):
      raise ValueError("double quantization of scales is for symmetric groups")

  @property
  def bits(self) -> int:
    """Of one number, without its share of scales."""
    return 8 if self.kind in FLOATS else int(re.sub(r"\D", "", self.kind))

  @property
  def has_channels(self) -> bool:
    """Whether numbers are 8-bit integers with one scale an output: those of a product, too."""
    return self.kind == "int8" and self.symmetric and self.group == 0

  @property
  def is_static(self) -> bool:
    """Whether rounded activations have one scale, which is calibrated."""
    return self.range != "row"

  @property
  def levels(self) -> tuple[int, int]:
    """The least and the largest integer."""
    half = 2 ** (self.bits - 1)
    return -half, half - 1

  def require_fits(self, inputs: int, what: str) -> None:
    """Raises ValueError if `inputs`, the length of the axis that groups divide, has no such form.

    Args:
      inputs: that length.
      what: whose it is, for the message.
    """
    if self.group > 0 and inputs % self.group:
      divisors = [g for g in (256, 128, 96, 64, 48, 32, 16, 8) if inputs % g == 0]
      would = f"; {', '.join(map(str, divisors))} would" if divisors else ""
      raise ValueError(f"{what}: a group of {self.group} does not divide {inputs} inputs{would}")
    if self.outliers >= inputs:
      raise ValueError(f"{what}: {self.outliers} outliers are all of its {inputs} inputs")
    if inputs % unit(self.bits):
      raise ValueError(f"{what}: {inputs} inputs of {self.bits} bits fill no whole bytes")


def _these(names):
  return f"there are {', '.join(names)}"
