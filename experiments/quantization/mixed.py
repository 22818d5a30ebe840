"""SmolLM2's projections in bits that a search chooses, in as many bytes as one kind for all takes.

  python -m research.export --config=experiments/quantization/mixed.py:int4_by_layer
  python -m research.export --config=experiments/quantization/mixed.py:int4_by_projection

Each item, a layer or all `down_proj`, gets that kind, or the one below or above it in bits: those
by which the loss of the calibration texts (`texts.py` writes them) rises least within these bytes.
For 3 bits it is int3 in place of int4.
"""

from configs import base_export
from experiments.quantization.config import MODEL, RUNS, VARIANTS
from experiments.quantization.training import SOURCE

KINDS = {"int3": ("int2", "int3", "int4"), "int4": ("int3", "int4", "int8")}
ITEMS = ("by_layer", "by_projection")
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


def get_config(name: str):
  """The export in as many bytes as the variant "KIND g64 nearest" has."""
  kind, _, items = name.partition("_")
  if kind not in KINDS or items not in ITEMS:
    names = ", ".join(f"{kind}_{items}" for kind in KINDS for items in ITEMS)
    raise ValueError(f"there is no search {name!r}; there are {names}")
  config = base_export.get_config()
  config.model.source = MODEL
  (rule,) = VARIANTS[f"{kind} g64 nearest"].rules
  if items == "by_layer":
    config.quantize = ({**rule, "kind": KINDS[kind], "each": "layer"},)
  else:
    config.quantize = tuple(
      {**rule, "kind": KINDS[kind], "target": f"layers/.*/{projection}_proj/kernel"}
      for projection in PROJECTIONS
    )
  # A scale in 16 bits and a zero point in 8 for each group of 64.
  config.bits = int(kind.removeprefix("int")) + 24 / 64
  config.calibration.source = SOURCE
  config.calibration.length = 256
  config.calibration.rows = 16
  config.output = f"{RUNS}/{name}"
  return config
