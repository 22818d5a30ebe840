"""SmolLM2's projections in 4 bits by GPTQ: where training of their scales begins.

  python -m research.export --config=experiments/quantization/rounded.py:int4
  python -m research.export --config=experiments/quantization/rounded.py:nf4

They are the variants "int4 g64 gptq passes", in GPTQ's own files, and "nf4 gptq mse", in those of
bitsandbytes, calibrated by rows of the calibration texts (`texts.py` writes them).
"""

from configs import base_export
from experiments.quantization.config import CALIBRATION_LENGTH, CALIBRATION_ROWS, MODEL, VARIANTS
from experiments.quantization.training import ROUNDED, SOURCE

# Of each kind: the variant, the format of its files, and how often numbers are gone through again.
KINDS = {"int4": ("int4 g64 gptq passes", "gptq", 3), "nf4": ("nf4 gptq mse", "bitsandbytes", 0)}


def get_config(kind: str):
  """The export that the run "KIND_scales" begins with."""
  if kind not in KINDS:
    raise ValueError(f"there is no {kind!r}; there are {', '.join(KINDS)}")
  variant, config_format, passes = KINDS[kind]
  config = base_export.get_config()
  config.model.source = MODEL
  config.quantize = VARIANTS[variant].rules
  config.method = {"name": "gptq", "act_order": True, "static_groups": True, "passes": passes}
  config.calibration.source = SOURCE
  config.calibration.length = CALIBRATION_LENGTH
  config.calibration.rows = CALIBRATION_ROWS
  config.directory = f"{ROUNDED[kind]}_layers"
  config.format = config_format
  config.output = ROUNDED[kind]
  return config
