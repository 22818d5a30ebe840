"""Qwen2 and 2.5 (arXiv:2407.10671): a llama with biases of queries, keys and values."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from research.models.config import DecoderConfig
from research.models.families import llama

NAME = "qwen2"
ARCHITECTURE = "Qwen2ForCausalLM"
IGNORED = llama.IGNORED

weights = llama.weights
modules = llama.modules
gguf_weights = llama.gguf_weights


def read_config(hf: Mapping[str, Any]) -> DecoderConfig:
  """From `config.json`."""
  config = llama.read_config(hf)
  return dataclasses.replace(
    config, family=NAME, qkv_bias=True, out_bias=False, windows=read_windows(hf)
  )


def read_windows(hf: Mapping[str, Any]) -> tuple[int, ...]:
  """A window in the layers from `max_window_layers` on, if any layer has one."""
  window = hf.get("sliding_window") if hf.get("use_sliding_window") else None
  return llama.read_windows(hf, window, lambda layer: layer >= hf.get("max_window_layers", 28))


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The `config.json` that `transformers` reads."""
  common = llama.write_config(config)
  del common["attention_bias"]  # queries, keys and values have one, always
  return common | {
    "architectures": [ARCHITECTURE],
    "model_type": NAME,
    "use_sliding_window": bool(config.windows),
    "sliding_window": max(config.windows, default=None),
    "layer_types": llama.layer_types(config),
  }


def gguf_config(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> DecoderConfig:
  """From a GGUF file's metadata."""
  return dataclasses.replace(llama.gguf_config(metadata, tensors), family=NAME)


def gguf_metadata(config: DecoderConfig) -> dict[str, Any]:
  """The inverse of `gguf_config`, see `llama.gguf_metadata`."""
  return llama.gguf_metadata(config, NAME)
