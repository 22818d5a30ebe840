"""SmolLM2-135M-Instruct in 4 bits by GPTQ, in GPTQ's own files.

  python -m research.export --config=configs/quantize.py

Layers are kept in runs/quantize/layers as they are done; an interrupted run goes on after them.

On two CPU cores, shared with other work: 10 min. Projections take 4.375 bits a parameter in memory
(zero points are whole bytes there), and the file 114.6 MB, the table of tokens in float16 with it;
in bfloat16 the model is 269.0 MB.
"""

from configs import base_export

TASKS = ("family_relationships", "syllogism", "leg_counting", "time_intervals", "number_sorting")


def get_config():
  config = base_export.get_config()
  config.model.source = "smollm2-135m-instruct"
  config.quantize = (
    {
      "target": "layers/.*_proj/kernel",
      "kind": "int4",
      "group": 64,
      "symmetric": False,
      "scales": "float16",
      "fit": "mse",
    },
  )
  config.method = {"name": "gptq", "act_order": True, "static_groups": True}
  # Problems in prose, which need no file, so that this runs anywhere. Take text of the kind that
  # the model is for, {"name": "text", "path": "mine.txt"}: by other text GPTQ can be worse than
  # rounding to nearest (experiments/quantization).
  config.calibration.source = {
    "name": "reasoning_gym",
    "tasks": tuple({"name": name} for name in TASKS),
    "size": 500,
  }
  config.directory = "runs/quantize/layers"
  config.format = "gptq"
  config.output = "runs/quantize/model"
  return config
