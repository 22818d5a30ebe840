"""What is compared: schemes, methods, caches, and the texts."""

from __future__ import annotations

import dataclasses
from typing import Any

from research import calibration
from research.calibration.methods import Method

MODEL = "smollm2-135m-instruct"
PROJECTIONS = "layers/.*_proj/kernel"
RUNS = "runs/quantization"  # where those that train are
EVALUATION_BYTES = 160_000  # of the text that is predicted: about 39,000 tokens
CALIBRATION_ROWS, CALIBRATION_LENGTH = 128, 512


@dataclasses.dataclass(frozen=True)
class Variant:
  """One way of holding the model.

  rules: see `research.quant.schemes`.
  method: how numbers are rounded.
  than: the variant whose excess of loss it is to lessen.
  written: the directory within `RUNS` of the model in few bits, where a command of its own writes
    it, which `COMMANDS` has by the first part of the path.
  """

  rules: tuple[dict[str, Any], ...]
  method: Method = calibration.Nearest()
  than: str = ""
  written: str = ""

  @property
  def multiplies_integers(self) -> bool:
    """Whether activations are rounded, too."""
    return any(rule.get("activations") for rule in self.rules)


def _projections(kind: str, **how: Any) -> tuple[dict[str, Any], ...]:
  return ({"target": PROJECTIONS, "kind": kind, **how},)


def _grouped(bits: int, **how: Any) -> tuple[dict[str, Any], ...]:
  return _projections(f"int{bits}", group=64, symmetric=False, scales="float16", **how)


_W8A8 = {"kind": "int8", "activations": "int8"}
COMMANDS = {
  "int4_gptq": "python -m research.export --config=experiments/quantization/rounded.py:int4",
  **{
    f"{kind}_{items}": "python -m research.export"
    f" --config=experiments/quantization/mixed.py:{kind}_{items}"
    for kind in ("int3", "int4")
    for items in ("by_layer", "by_projection")
  },
  **{
    run: f"python -m research.train --config=experiments/quantization/training.py:{run}"
    for run in ("int3_training", "int4_scales", "nf4_scales")
  },
}

VARIANTS: dict[str, Variant] = {
  "int8": Variant(_projections("int8")),
  "int4 g64 nearest": Variant(_grouped(4)),
  "int4 g64 gptq": Variant(_grouped(4), calibration.GPTQ(), "int4 g64 nearest"),
  "int4 g64 gptq act-order": Variant(
    _grouped(4), calibration.GPTQ(act_order=True, static_groups=True), "int4 g64 nearest"
  ),
  "int4 g64 mse": Variant(_grouped(4, fit="mse")),
  "int4 g64 gptq mse": Variant(
    _grouped(4, fit="mse"),
    calibration.GPTQ(act_order=True, static_groups=True),
    "int4 g64 nearest",
  ),
  "int4 g64 gptq scales": Variant(
    _grouped(4), than="int4 g64 nearest", written="int4_scales/model"
  ),
  "int4 g64 gptq passes": Variant(
    _grouped(4, fit="mse"), than="int4 g64 nearest", written="int4_gptq"
  ),
  "int4 g64 awq": Variant(_grouped(4), calibration.AWQ(), "int4 g64 nearest"),
  "int3 g64 nearest": Variant(_grouped(3)),
  "int3 g64 gptq": Variant(_grouped(3), calibration.GPTQ(), "int3 g64 nearest"),
  "int3 g64 gptq act-order": Variant(
    _grouped(3), calibration.GPTQ(act_order=True, static_groups=True), "int3 g64 nearest"
  ),
  "int3 g64 gptq mse": Variant(
    _grouped(3, fit="mse"),
    calibration.GPTQ(act_order=True, static_groups=True),
    "int3 g64 nearest",
  ),
  "int3 g64 awq": Variant(_grouped(3), calibration.AWQ(), "int3 g64 nearest"),
  **{
    f"{kind} bytes {items}": Variant(
      (), than=f"{kind} g64 nearest", written=f"{kind}_{items.replace(' ', '_')}"
    )
    for kind in ("int4", "int3")
    for items in ("by layer", "by projection")
  },
  "int3 g64 trained": Variant(_grouped(3), than="int3 g64 nearest", written="int3_training/model"),
  "w8a8": Variant(_projections(**_W8A8)),
  "w8a8 smoothquant": Variant(_projections(**_W8A8), calibration.SmoothQuant(), "w8a8"),
  "w8a8 smoothquant outliers": Variant(
    (
      {"target": "layers/attention/[qkv]_proj/kernel", **_W8A8, "outliers": 8},
      *_projections(**_W8A8),
    ),
    calibration.SmoothQuant(),
    "w8a8",
  ),
  "w8a8 outliers": Variant(_projections(**_W8A8, outliers=16)),
  "nf4": Variant(_projections("nf4", group=64)),
  "nf4 double": Variant(_projections("nf4", group=64, scales="double")),
  "nf4 gptq": Variant(
    _projections("nf4", group=64),
    calibration.GPTQ(act_order=True, static_groups=True),
    "nf4",
  ),
  "nf4 gptq mse": Variant(
    _projections("nf4", group=64, fit="mse"),
    calibration.GPTQ(act_order=True, static_groups=True),
    "nf4",
  ),
  "nf4 gptq scales": Variant(_projections("nf4", group=64), than="nf4", written="nf4_scales/model"),
}

# A cache in few bits, by the tokens that a window shows; what is scored has seen a quarter of them.
CACHE_LENGTHS = (2048, 4096)
CACHES: dict[str, dict[str, Any]] = {
  "int8": {"kind": "int8"},
  "int4": {"kind": "int4"},
  "int2": {"kind": "int2"},
  "int2-32": {"kind": "int2", "channels": 32},
}
