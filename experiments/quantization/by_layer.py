"""SmolLM2's projections in bits that a search gives each layer, in as many bytes as one kind takes.

  python -m research.export --config=experiments/quantization/by_layer.py:int4
  python -m research.export --config=experiments/quantization/by_layer.py:int3

The kernels of each layer get that kind, or the one below or above it in bits: those by which the
loss of the calibration texts (`texts.py` writes them) rises least within these bytes.
"""

from configs import base_export
from experiments.quantization.config import MODEL, RUNS, VARIANTS
from experiments.quantization.training import SOURCE

KINDS = {"int3": ("int2", "int3", "int4"), "int4": ("int3", "int4", "int8")}


def get_config(kind: str):
  """The export in as many bytes as the variant "KIND g64 nearest" has."""
  if kind not in KINDS:
    raise ValueError(f"there is no search beside {kind!r}; there are {', '.join(KINDS)}")
  config = base_export.get_config()
  config.model.source = MODEL
  (rule,) = VARIANTS[f"{kind} g64 nearest"].rules
  config.quantize = ({**rule, "kind": KINDS[kind], "each": "layer"},)
  # A scale in 16 bits and a zero point in 8 for each group of 64.
  config.bits = int(kind.removeprefix("int")) + 24 / 64
  config.calibration.source = SOURCE
  config.calibration.length = 256
  config.calibration.rows = 16
  config.output = f"{RUNS}/{kind}_by_layer"
  return config
