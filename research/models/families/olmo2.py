"""OLMo 2 (arXiv:2501.00656): a llama normed after its sub-layers, with norms of all queries and
all keys."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from research.models.config import DecoderConfig
from research.models.families import llama
from research.models.families.weights import Weight

NAME = "olmo2"
ARCHITECTURE = "Olmo2ForCausalLM"
IGNORED = llama.IGNORED

_NORMS = {
  "attention_post_norm": "post_attention_layernorm",
  "mlp_post_norm": "post_feedforward_layernorm",
}

modules = llama.modules


def read_config(hf: Mapping[str, Any]) -> DecoderConfig:
  """From `config.json`."""
  config = llama.read_config({"rms_norm_eps": 1e-5, **hf})
  return dataclasses.replace(
    config, family=NAME, pre_norm=False, post_norm=True, qk_norm="projection"
  )


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The `config.json` that `transformers` reads."""
  names = {"architectures": [ARCHITECTURE], "model_type": NAME}
  return llama.write_config(config) | names


def weights(config: DecoderConfig) -> list[Weight]:
  """Hugging Face's tensors."""
  return llama.weights(config, _NORMS)
