"""Mistral (Jiang et al. 2023, arXiv:2310.06825): a llama with one sliding window everywhere."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from research.models.config import DecoderConfig
from research.models.families import llama

NAME = "mistral"
ARCHITECTURE = "MistralForCausalLM"
IGNORED = llama.IGNORED

weights = llama.weights
modules = llama.modules


def read_config(hf: Mapping[str, Any]) -> DecoderConfig:
  """From `config.json`."""
  config = llama.read_config(hf)
  window = hf.get("sliding_window")
  windows = (window,) * config.num_layers if window else ()
  return dataclasses.replace(config, family=NAME, windows=windows)


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The `config.json` that `transformers` reads."""
  return llama.write_config(config) | {
    "architectures": [ARCHITECTURE],
    "model_type": NAME,
    "sliding_window": max(config.windows, default=None),
  }
