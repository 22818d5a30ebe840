"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): a mistral whose feed-forward is of experts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from research.models.config import DecoderConfig
from research.models.families import llama, mistral
from research.models.families.weights import Weight

NAME = "mixtral"
ARCHITECTURE = "MixtralForCausalLM"
IGNORED = llama.IGNORED
NAMES = {
  "router": "block_sparse_moe.gate",
  "experts/gate_proj": "block_sparse_moe.experts.{}.w1",
  "experts/up_proj": "block_sparse_moe.experts.{}.w3",
  "experts/down_proj": "block_sparse_moe.experts.{}.w2",
}


def read_config(hf: Mapping[str, Any]) -> DecoderConfig:
  """From `config.json`.

  Raises:
    ValueError: it asks for noise in the router.
  """
  if hf.get("router_jitter_noise"):
    raise ValueError("router_jitter_noise is not supported; set it to 0 in config.json")
  return dataclasses.replace(
    mistral.read_config(hf),
    family=NAME,
    num_experts=hf["num_local_experts"],
    experts_per_token=hf["num_experts_per_tok"],
  )


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The `config.json` that `transformers` reads."""
  return mistral.write_config(config) | {
    "architectures": [ARCHITECTURE],
    "model_type": NAME,
    "num_local_experts": config.num_experts,
    "num_experts_per_tok": config.experts_per_token,
  }


def modules(config: DecoderConfig) -> dict[str, tuple[str, tuple[int, int, int]]]:
  """See `llama.modules`; PEFT has no modules for experts, which are one tensor in torch."""
  return {
    path: module
    for path, module in llama.modules(config).items()
    if not path.startswith("layers/mlp/")
  }


def weights(config: DecoderConfig, names: Mapping[str, str] = NAMES) -> list[Weight]:
  """Hugging Face's tensors.

  names: our name of a part of the feed-forward -> theirs.
  """
  found = [w for w in llama.weights(config) if not w.path.startswith("layers/mlp/")]
  return found + [
    Weight(f"layers/mlp/{ours}/kernel", f"model.layers.{{}}.{theirs}.weight", transposed=True)
    for ours, theirs in names.items()
  ]
