"""Gemma 3's text models (arXiv:2503.19786): Gemma 2 without caps, with norms of each head's
queries and keys, and a window and a rotation of its own in five of six layers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from research.models.config import DecoderConfig
from research.models.families import gemma2, llama, rope
from research.nn.positions import Rope

NAME = "gemma3_text"
ARCHITECTURE = "Gemma3ForCausalLM"
IGNORED = llama.IGNORED

_DEFAULTS = {
  "head_dim": 256,
  "hidden_activation": "gelu_pytorch_tanh",
  "max_position_embeddings": 131_072,
  "tie_word_embeddings": True,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "attn_logit_softcapping": None,
  "final_logit_softcapping": None,
}

weights = gemma2.weights
modules = llama.modules
gguf_weights = gemma2.gguf_weights


def read_config(hf: Mapping[str, Any]) -> DecoderConfig:
  """From `config.json`, where `rope_parameters` are by the type of layer since transformers 5."""
  hf = {**_DEFAULTS, **hf}
  every = hf.get("sliding_window_pattern", 6)
  ropes = hf.get("rope_parameters") or {"full_attention": hf.get("rope_scaling")}
  full, local = (ropes.get(kind) or {} for kind in llama.KINDS)
  limit = hf["max_position_embeddings"]
  return dataclasses.replace(
    gemma2.read_common(
      {k: v for k, v in hf.items() if k not in ("rope_parameters", "rope_scaling")}
    ),
    family=NAME,
    qk_norm="head",
    windows=llama.read_windows(hf, hf["sliding_window"], lambda layer: (layer + 1) % every != 0),
    rope=rope.read(full, limit, theta=hf.get("rope_theta", 1e6)),
    local_rope=rope.read(local, limit, theta=hf.get("rope_local_base_freq", 1e4)),
  )


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The `config.json` that `transformers` reads."""
  if config.rope is None or config.local_rope is None:
    raise ValueError("a gemma3_text has two rotary embeddings; this model has not")
  return gemma2.write_config(config) | {
    "architectures": [ARCHITECTURE],
    "model_type": NAME,
    "rope_parameters": {
      "full_attention": rope.write(config.rope),
      "sliding_attention": rope.write(config.local_rope),
    },
    "rope_local_base_freq": config.local_rope.theta,
  }


def gguf_config(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> DecoderConfig:
  """From a GGUF file's metadata, where the 27B model is known by its 62 layers."""
  config = gemma2.read_gguf(metadata, tensors, window=1024, every=6, layers_of_27b=62)
  get = llama.gguf_keys(metadata)
  theta = get.get("rope.freq_base_swa", 10_000.0)
  return dataclasses.replace(
    config,
    family=NAME,
    qk_norm="head",
    logit_softcap=get.get("final_logit_softcapping"),
    local_rope=Rope(theta=theta, original_max_positions=config.max_positions),
  )


def gguf_metadata(config: DecoderConfig) -> dict[str, Any]:
  """The inverse of `gguf_config`, see `llama.gguf_metadata`."""
  if config.local_rope is None:
    raise ValueError("a gemma3_text has two rotary embeddings; this model has one")
  local = {"gemma3.rope.freq_base_swa": config.local_rope.theta}
  return gemma2.gguf_metadata(config, "gemma3") | local
