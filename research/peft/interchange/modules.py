"""Where our kernels lie in a checkpoint, as PEFT names its modules, and how it names its files."""

from collections.abc import Mapping

# path of a kernel -> (module's name in the checkpoint, `{}` for the layer; the units
# `(start, stop, total)` of the module's outputs that it holds)
Part = tuple[int, int, int]
Modules = Mapping[str, tuple[str, Part]]

CONFIG = "adapter_config.json"
FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every tensor's name at a module
