"""GPT-2: LayerNorm, learned positions, biases, GELU (Radford et al. 2019)."""

from collections.abc import Mapping
from typing import Any

from research.models.config import DecoderConfig
from research.models.families.weights import Weight

NAME = "gpt2"
ARCHITECTURE = "GPT2LMHeadModel"
# Causal masks that old checkpoints store as buffers.
IGNORED = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",)

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}

# Conv1D modules: `[in, out]`, query, key and value fused along out.
_MODULES = {
  "attention/q_proj": ("attn.c_attn", (0, 1, 3)),
  "attention/k_proj": ("attn.c_attn", (1, 2, 3)),
  "attention/v_proj": ("attn.c_attn", (2, 3, 3)),
  "attention/o_proj": ("attn.c_proj", (0, 1, 1)),
  "mlp/up_proj": ("mlp.c_fc", (0, 1, 1)),
  "mlp/down_proj": ("mlp.c_proj", (0, 1, 1)),
}


def read_config(hf: Mapping[str, Any]) -> DecoderConfig:
  """From `config.json`."""
  heads, hidden = hf["n_head"], hf["n_embd"]
  for key, ours in (("scale_attn_by_inverse_layer_idx", False), ("scale_attn_weights", True)):
    if hf.get(key, ours) != ours:
      raise ValueError(f"gpt2 with {key}={hf[key]} is not supported; only {ours}")
  return DecoderConfig(
    family=NAME,
    vocab_size=hf["vocab_size"],
    num_layers=hf["n_layer"],
    hidden_size=hidden,
    mlp_size=hf.get("n_inner") or 4 * hidden,
    num_heads=heads,
    num_kv_heads=heads,
    head_size=hidden // heads,
    max_positions=hf["n_positions"],
    norm="layer",
    norm_eps=hf.get("layer_norm_epsilon", 1e-5),
    activation=_activation(hf.get("activation_function", "gelu_new")),
    gated_mlp=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    tied_head=hf.get("tie_word_embeddings", True),
    rope=None,
  )


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The `config.json` that `transformers` reads."""
  if config.positions != "learned":
    raise ValueError(f"a {NAME} has learned positions; this model's are {config.positions}")
  return {
    "architectures": [ARCHITECTURE],
    "model_type": NAME,
    "vocab_size": config.vocab_size,
    "n_layer": config.num_layers,
    "n_embd": config.hidden_size,
    "n_inner": config.mlp_size,
    "n_head": config.num_heads,
    "n_positions": config.max_positions,
    "layer_norm_epsilon": config.norm_eps,
    "activation_function": {v: k for k, v in reversed(_ACTIVATIONS.items())}[config.activation],
    "tie_word_embeddings": config.tied_head,
  }


def weights(config: DecoderConfig) -> list[Weight]:
  """Hugging Face's tensors."""
  found = [
    Weight("embed/embedding", "transformer.wte.weight"),
    Weight("positions/embedding", "transformer.wpe.weight"),
  ]
  for ours, theirs in (
    ("layers/attention_norm", "transformer.h.{}.ln_1"),
    ("layers/mlp_norm", "transformer.h.{}.ln_2"),
    ("final_norm", "transformer.ln_f"),
  ):
    found.append(Weight(f"{ours}/scale", f"{theirs}.weight"))
    found.append(Weight(f"{ours}/bias", f"{theirs}.bias"))
  for ours, (theirs, part) in _MODULES.items():
    name = f"transformer.h.{{}}.{theirs}"
    found.append(Weight(f"layers/{ours}/kernel", f"{name}.weight", part=part))
    found.append(Weight(f"layers/{ours}/bias", f"{name}.bias", part=part))
  if not config.tied_head:
    found.append(Weight("lm_head/kernel", "lm_head.weight", transposed=True))
  return found


def modules(config: DecoderConfig) -> dict[str, tuple[str, tuple[int, int, int]]]:
  """Our projection's kernel, or table -> PEFT's module name and the part of it that we hold."""
  del config
  found = {
    f"layers/{ours}/kernel": (f"transformer.h.{{}}.{theirs}", part)
    for ours, (theirs, part) in _MODULES.items()
  }
  found["embed/embedding"] = ("transformer.wte", (0, 1, 1))
  return found | {"lm_head/kernel": ("lm_head", (0, 1, 1))}


def _activation(name: str) -> str:
  return _ACTIVATIONS.get(name, name)
