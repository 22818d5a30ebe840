"""Phi-3 and Phi-4-mini (arXiv:2404.14219): a llama with fused projections, heads that may turn in
part, and long-rope."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from research.models.config import DecoderConfig
from research.models.families import llama, mistral, rope
from research.models.families.weights import Weight

NAME = "phi3"
ARCHITECTURE = "Phi3ForCausalLM"
IGNORED = llama.IGNORED


def read_config(hf: Mapping[str, Any]) -> DecoderConfig:
  """From `config.json`."""
  parameters = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
  kind = parameters.get("rope_type", parameters.get("type", "default"))
  if kind in ("su", "yarn"):  # what long-rope was called at first
    parameters["rope_type"] = "longrope"
  limit = hf.get("max_position_embeddings", 4096)
  parameters["original_max_position_embeddings"] = hf.get("original_max_position_embeddings", 4096)
  plain = {k: v for k, v in hf.items() if k not in ("rope_parameters", "rope_scaling")}
  turn = rope.read(
    parameters,
    limit,
    theta=hf.get("rope_theta", 10_000.0),
    fraction=hf.get("partial_rotary_factor", 1.0),
  )
  return dataclasses.replace(
    mistral.read_config({"rms_norm_eps": 1e-5, "max_position_embeddings": limit, **plain}),
    family=NAME,
    rope=turn,
  )


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The `config.json` that `transformers` reads."""
  common = mistral.write_config(config)  # which sees to it that there is a rope
  assert config.rope is not None
  return common | {
    "architectures": [ARCHITECTURE],
    "model_type": NAME,
    "pad_token_id": None,  # by default one that a smaller vocabulary lacks
    "partial_rotary_factor": config.rope.fraction,
    "original_max_position_embeddings": config.rope.original_max_positions,
  }


def weights(config: DecoderConfig) -> list[Weight]:
  """Hugging Face's tensors."""
  fused = {path: (f"{name}.weight", part) for path, (name, part) in modules(config).items()}
  return [
    dataclasses.replace(w, name=fused[w.path][0], part=fused[w.path][1]) if w.path in fused else w
    for w in llama.weights(config)
  ]


def modules(config: DecoderConfig) -> dict[str, tuple[str, tuple[int, int, int]]]:
  """Our projection's kernel -> PEFT's module name and the part of it that we hold."""
  q, kv = config.num_heads, config.num_kv_heads
  heads, attention = q + 2 * kv, "model.layers.{}.self_attn.qkv_proj"
  return llama.modules(config) | {
    "layers/attention/q_proj/kernel": (attention, (0, q, heads)),
    "layers/attention/k_proj/kernel": (attention, (q, q + kv, heads)),
    "layers/attention/v_proj/kernel": (attention, (q + kv, heads, heads)),
    "layers/mlp/gate_proj/kernel": ("model.layers.{}.mlp.gate_up_proj", (0, 1, 2)),
    "layers/mlp/up_proj/kernel": ("model.layers.{}.mlp.gate_up_proj", (1, 2, 2)),
  }
