"""Gemma 2 (arXiv:2408.00118): norms before and after sub-layers, whose scales are kept less 1,
scaled embeddings, GeGLU, soft caps, and a window in every other layer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from research.models.config import DecoderConfig
from research.models.families import llama
from research.models.families.weights import Weight

NAME = "gemma2"
ARCHITECTURE = "Gemma2ForCausalLM"
IGNORED = llama.IGNORED

_NORMS = {
  "attention_norm": "input_layernorm",
  "attention_post_norm": "post_attention_layernorm",
  "mlp_norm": "pre_feedforward_layernorm",
  "mlp_post_norm": "post_feedforward_layernorm",
}
_GGUF_NORMS = {
  "attention_norm": "attn_norm",
  "attention_post_norm": "post_attention_norm",
  "mlp_norm": "ffn_norm",
  "mlp_post_norm": "post_ffw_norm",
}
_DEFAULTS = {
  "head_dim": 256,
  "hidden_activation": "gelu_pytorch_tanh",
  "tie_word_embeddings": True,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "attn_logit_softcapping": 50.0,
  "final_logit_softcapping": 30.0,
}

modules = llama.modules


def read_config(hf: Mapping[str, Any]) -> DecoderConfig:
  """From `config.json`."""
  hf = {**_DEFAULTS, **hf}
  windows = llama.read_windows(hf, hf["sliding_window"], lambda layer: layer % 2 == 0)
  return dataclasses.replace(read_common(hf), family=NAME, windows=windows)


def read_common(hf: Mapping[str, Any]) -> DecoderConfig:
  """What Gemma 2 and 3 share; `hf` has every key that they define.

  Raises:
    ValueError: attention is bidirectional.
  """
  if hf.get("use_bidirectional_attention"):
    raise ValueError("use_bidirectional_attention is not supported in a decoder; only false is")
  config = llama.read_config({**hf, "hidden_act": hf["hidden_activation"]})
  return dataclasses.replace(
    config,
    norm="rms_plus_one",
    post_norm=True,
    attention_scale=hf["query_pre_attn_scalar"] ** -0.5,
    attention_softcap=hf["attn_logit_softcapping"],
    logit_softcap=hf["final_logit_softcapping"],
    embedding_scale=config.hidden_size**0.5,
  )


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The `config.json` that `transformers` reads."""
  if config.attention_scale is None:
    raise ValueError(f"a {config.family} has an attention_scale")
  common = llama.write_config(config)
  scalar = config.attention_scale**-2
  return common | {
    "architectures": [ARCHITECTURE],
    "model_type": NAME,
    "hidden_activation": common["hidden_act"],
    "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
    "attn_logit_softcapping": config.attention_softcap,
    "final_logit_softcapping": config.logit_softcap,
    "sliding_window": max(config.windows, default=None),
    "layer_types": llama.layer_types(config),
  }


def weights(config: DecoderConfig) -> list[Weight]:
  """Hugging Face's tensors."""
  return llama.weights(config, _NORMS)


def gguf_config(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> DecoderConfig:
  """From a GGUF file's metadata, where the 27B model is known by its 46 layers."""
  config = read_gguf(metadata, tensors, window=4096, every=2, layers_of_27b=46)
  get = llama.gguf_keys(metadata)
  return dataclasses.replace(
    config,
    family=NAME,
    attention_softcap=get.get("attn_logit_softcapping", 50.0),
    logit_softcap=get.get("final_logit_softcapping", 30.0),
  )


def read_gguf(
  metadata: Mapping[str, Any],
  tensors: Mapping[str, Any],
  *,
  window: int,
  every: int,
  layers_of_27b: int,
) -> DecoderConfig:
  """What Gemma 2 and 3 share in GGUF files, whose metadata lack the scale of scores.

  Args:
    window: if the metadata have none. every: how many layers apart those without a window are.
    layers_of_27b: of the one size whose scores are scaled by the width of a head in the stream.
  """
  config = llama.gguf_config(metadata, tensors)
  window = metadata.get(f"{metadata['general.architecture']}.attention.sliding_window", window)
  wide = config.num_layers == layers_of_27b
  width = config.hidden_size // config.num_heads if wide else config.head_size
  return dataclasses.replace(
    config,
    norm="rms_plus_one",
    activation="gelu_tanh",
    post_norm=True,
    attention_scale=width**-0.5,
    embedding_scale=config.hidden_size**0.5,
    windows=tuple(0 if (i + 1) % every == 0 else window for i in range(config.num_layers)),
  )


def gguf_metadata(config: DecoderConfig, architecture: str = NAME) -> dict[str, Any]:
  """The inverse of `gguf_config`, see `llama.gguf_metadata`."""
  found: dict[str, Any] = {}
  if config.windows:
    found["attention.sliding_window"] = max(config.windows)
  if config.attention_softcap is not None:
    found["attn_logit_softcapping"] = float(config.attention_softcap)
  if config.logit_softcap is not None:
    found["final_logit_softcapping"] = float(config.logit_softcap)
  prefixed = {f"{architecture}.{key}": value for key, value in found.items()}
  return llama.gguf_metadata(config, architecture) | prefixed


def gguf_weights(config: DecoderConfig) -> list[Weight]:
  """llama.cpp's tensors; it stores the scales of norms with the 1 added."""
  return llama.gguf_weights(config, _GGUF_NORMS, offset=1.0)
