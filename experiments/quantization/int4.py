"""SmolLM2's projections in 4 bits by GPTQ, in GPTQ's own files: where training of scales begins.

  python -m research.export --config=experiments/quantization/int4.py

It is the variant "int4 g64 gptq passes", calibrated by rows of the calibration texts (`texts.py`
writes them).
"""

from configs import base_export
from experiments.quantization.config import CALIBRATION_LENGTH, CALIBRATION_ROWS, MODEL, VARIANTS
from experiments.quantization.training import INT4, SOURCE


def get_config():
  """The export that the run "int4_scales" begins with."""
  config = base_export.get_config()
  config.model.source = MODEL
  config.quantize = VARIANTS["int4 g64 gptq passes"].rules
  config.method = {"name": "gptq", "act_order": True, "static_groups": True, "passes": 3}
  config.calibration.source = SOURCE
  config.calibration.length = CALIBRATION_LENGTH
  config.calibration.rows = CALIBRATION_ROWS
  config.directory = f"{INT4}_layers"
  config.format = "gptq"
  config.output = INT4
  return config
