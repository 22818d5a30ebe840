"""Qwen3 (arXiv:2505.09388): a llama with norms of each head's queries and keys."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from research.models.config import DecoderConfig
from research.models.families import llama, qwen2

NAME = "qwen3"
ARCHITECTURE = "Qwen3ForCausalLM"
IGNORED = llama.IGNORED

weights = llama.weights
modules = llama.modules
gguf_weights = llama.gguf_weights


def read_config(hf: Mapping[str, Any]) -> DecoderConfig:
  """From `config.json`."""
  config = llama.read_config({"head_dim": 128, **hf})
  return dataclasses.replace(config, family=NAME, qk_norm="head", windows=qwen2.read_windows(hf))


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The `config.json` that `transformers` reads."""
  names = {"architectures": [ARCHITECTURE], "model_type": NAME}
  return qwen2.write_config(config) | names


def gguf_config(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> DecoderConfig:
  """From a GGUF file's metadata."""
  return dataclasses.replace(llama.gguf_config(metadata, tensors), family=NAME, qk_norm="head")


def gguf_metadata(config: DecoderConfig) -> dict[str, Any]:
  """The inverse of `gguf_config`, see `llama.gguf_metadata`."""
  return llama.gguf_metadata(config, NAME)
