"""Qwen3's mixtures of experts (arXiv:2505.09388): a qwen3 whose feed-forward is of experts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from research.models.config import DecoderConfig
from research.models.families import llama, mistral, mixtral
from research.models.families.weights import Weight

NAME = "qwen3_moe"
ARCHITECTURE = "Qwen3MoeForCausalLM"
IGNORED = llama.IGNORED
_NAMES = {
  "router": "mlp.gate",
  "experts/gate_proj": "mlp.experts.{}.gate_proj",
  "experts/up_proj": "mlp.experts.{}.up_proj",
  "experts/down_proj": "mlp.experts.{}.down_proj",
}

modules = mixtral.modules


def read_config(hf: Mapping[str, Any]) -> DecoderConfig:
  """From `config.json`.

  Raises:
    ValueError: some layers have a plain feed-forward: layers are stacked, and so all alike.
  """
  if hf.get("mlp_only_layers") or hf.get("decoder_sparse_step", 1) != 1:
    raise ValueError(
      f"mlp_only_layers={hf.get('mlp_only_layers')} and"
      f" decoder_sparse_step={hf.get('decoder_sparse_step', 1)} leave layers without experts;"
      " only models with experts in every layer (none, 1) are supported"
    )
  # Unlike a qwen3's, a window is of all layers, and heads have by default the size that is left.
  window = hf.get("sliding_window") if hf.get("use_sliding_window") else None
  return dataclasses.replace(
    mistral.read_config({**hf, "sliding_window": window}),
    family=NAME,
    qk_norm="head",
    mlp_size=hf["moe_intermediate_size"],
    num_experts=hf["num_experts"] if "num_experts" in hf else hf["num_local_experts"],
    experts_per_token=hf["num_experts_per_tok"],
    normalize_experts=hf.get("norm_topk_prob", False),
  )


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The `config.json` that `transformers` reads."""
  return mistral.write_config(config) | {
    "architectures": [ARCHITECTURE],
    "model_type": NAME,
    "use_sliding_window": bool(config.windows),
    "moe_intermediate_size": config.mlp_size,
    "num_experts": config.num_experts,
    "num_experts_per_tok": config.experts_per_token,
    "norm_topk_prob": config.normalize_experts,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
  }


def weights(config: DecoderConfig) -> list[Weight]:
  """Hugging Face's tensors."""
  return mixtral.weights(config, _NAMES)
