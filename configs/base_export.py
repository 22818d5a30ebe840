"""The defaults of `research.export --config`, told once.

A file starts from these and tells its differences, as those of runs do from configs/base.py. The
config is locked: a key that is not here is an error, and so is one that nothing reads.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Everything but the model, what of it is to be in few bits, and where it goes."""
  config = ConfigDict()
  # Of the order of calibration data.
  config.seed = 0
  # As in configs/base.py.
  config.compilation_cache = ""

  config.model = ConfigDict()
  # A Hugging Face directory, a GGUF file, or a name that research.models knows.
  config.model.source = ""
  # An adapter of it, in PEFT's format, which is merged first, but for format "peft".
  config.model.adapter = ""
  # Or, in place of both, a run's directory.
  config.model.run = ""

  # What is held in few bits: rules {"target": path regex, "kind": "int4", "group": 64, "symmetric":
  # False, "scales": "float16"}, as research.quant.Scheme has them; kind "none" leaves a parameter
  # as it is, and a parameter takes the first rule that matches it. "layers/(0|29)/.*" are two
  # layers, "layers/.*" all; but for "native" all layers of a projection have one scheme. Empty:
  # nothing is.
  config.quantize = ()
  # Where rules have several kinds, {"target": ..., "kind": ("int3", "int4", "int8"), "group": 64}:
  # how many bits a parameter of theirs may take, scales included. Each gets the kind by which the
  # loss on calibration data rises least, all together; with "each": "layer" in a rule each of
  # its layers does, which format "native" holds.
  config.bits = 0.0
  # How numbers are rounded: one of research.calibration.METHODS, with its arguments: "nearest";
  # {"name": "gptq", "act_order": True}; "awq". Whichever it is, rounded activations have one scale
  # for all if their rule says "range": "absmax", "average", "percentile" or "mse".
  config.method = ConfigDict({"name": "nearest"})

  # What projections read while a method looks on: data as in configs/base.py's `data.train`. Best
  # of the kind that the model is for, and not what it is to be measured by.
  config.calibration = base.get_config().data.train.copy_and_resolve_references()
  config.calibration.unlock()
  config.calibration.on_long_row = "split"
  # How many rows, each of `length` tokens. A choice of kinds is made by the first 16 of them.
  config.calibration.rows = 64
  # The type of activations meanwhile; parameters are float32.
  config.calibration.dtype = "bfloat16"

  # Layers that are done are kept here, so that the same command goes on after an interruption;
  # empty: nowhere.
  config.directory = ""

  # "native" (our own, of anything), "gptq", "awq", "bitsandbytes" or "torchao"; without `quantize`
  # "hf" or "gguf", or "peft": the adapter alone, unmerged.
  config.format = "native"
  # The type of what is not in few bits; empty: the format's default.
  config.type = ""
  # Where to.
  config.output = ""

  config.lock()
  return config
