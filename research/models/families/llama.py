"""Llama and its like: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Touvron et al. 2023 (arXiv:2307.09288); Llama 3, arXiv:2407.21783.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from research.models.config import DecoderConfig
from research.models.families import gguf_rope, rope
from research.models.families.weights import Weight
from research.nn.positions import Rope

NAME = "llama"
ARCHITECTURE = "LlamaForCausalLM"
KINDS = ("full_attention", "sliding_attention")  # of layers, in `layer_types`
IGNORED = (r".*rotary_emb\.inv_freq", r"rope_freqs\.weight")

_MODULES = {
  "attention/q_proj": "self_attn.q_proj",
  "attention/k_proj": "self_attn.k_proj",
  "attention/v_proj": "self_attn.v_proj",
  "attention/o_proj": "self_attn.o_proj",
  "mlp/gate_proj": "mlp.gate_proj",
  "mlp/up_proj": "mlp.up_proj",
  "mlp/down_proj": "mlp.down_proj",
}
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
GGUF_NORMS = {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"}


def read_config(hf: Mapping[str, Any]) -> DecoderConfig:
  """From `config.json`, with the key names of any generation of `transformers`."""
  heads = hf["num_attention_heads"]
  bias = hf.get("attention_bias", False)
  return DecoderConfig(
    family=NAME,
    vocab_size=hf["vocab_size"],
    num_layers=hf["num_hidden_layers"],
    hidden_size=hf["hidden_size"],
    mlp_size=hf["intermediate_size"],
    num_heads=heads,
    num_kv_heads=hf.get("num_key_value_heads") or heads,
    head_size=hf.get("head_dim") or hf["hidden_size"] // heads,
    max_positions=hf.get("max_position_embeddings", 2048),
    norm="rms",
    norm_eps=hf.get("rms_norm_eps", 1e-6),
    activation=_activation(hf.get("hidden_act", "silu")),
    gated_mlp=True,
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=hf.get("mlp_bias", False),
    tied_head=hf.get("tie_word_embeddings", False),
    rope=read_rope(hf),
  )


def read_rope(hf: Mapping[str, Any]) -> Rope:
  """Rotary settings from `rope_parameters` (v5), or `rope_theta` with `rope_scaling`."""
  return rope.read(
    hf.get("rope_parameters") or hf.get("rope_scaling") or {},
    hf.get("max_position_embeddings", 2048),
    theta=hf.get("rope_theta", 10_000.0),
    fraction=hf.get("partial_rotary_factor", 1.0),
  )


def read_windows(
  hf: Mapping[str, Any], window: int | None, sliding: Callable[[int], bool]
) -> tuple[int, ...]:
  """`DecoderConfig.windows` from `layer_types`, or by `sliding`, which tells it of a layer.

  Raises:
    ValueError: a layer's type is unknown.
  """
  default = [KINDS[bool(window) and sliding(i)] for i in range(hf["num_hidden_layers"])]
  found = hf.get("layer_types") or default
  for kind in found:
    if kind not in KINDS:
      raise ValueError(f"layer type {kind!r} is unknown; known: {', '.join(KINDS)}")
  windows = tuple(int(window or 0) if kind == KINDS[1] else 0 for kind in found)
  return windows if any(windows) else ()


def layer_types(config: DecoderConfig) -> list[str]:
  """The inverse of `read_windows`."""
  return [KINDS[bool(window)] for window in config.windows or (0,) * config.num_layers]


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The `config.json` that `transformers` reads."""
  parameters = rope.write(_rope(config))
  return {
    "architectures": [ARCHITECTURE],
    "model_type": NAME,
    "vocab_size": config.vocab_size,
    "num_hidden_layers": config.num_layers,
    "hidden_size": config.hidden_size,
    "intermediate_size": config.mlp_size,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_size,
    "max_position_embeddings": config.max_positions,
    "rms_norm_eps": config.norm_eps,
    "hidden_act": {"gelu_tanh": "gelu_pytorch_tanh"}.get(config.activation, config.activation),
    "attention_bias": config.qkv_bias,
    "mlp_bias": config.mlp_bias,
    "tie_word_embeddings": config.tied_head,
    "rope_parameters": parameters,
    # The keys that transformers 4 and most other readers look for.
    "rope_theta": parameters["rope_theta"],
    "rope_scaling": None if parameters["rope_type"] == "default" else parameters,
  }


def weights(config: DecoderConfig, norms: Mapping[str, str] = NORMS) -> list[Weight]:
  """Hugging Face's tensors.

  norms: our name of a layer's norm -> theirs.
  """
  found = [
    Weight("embed/embedding", "model.embed_tokens.weight"),
    Weight("final_norm/scale", "model.norm.weight"),
    Weight("lm_head/kernel", "lm_head.weight", transposed=True),
  ]
  names = {"attention/q_norm": "self_attn.q_norm", "attention/k_norm": "self_attn.k_norm"}
  for ours, theirs in (*norms.items(), *names.items()):
    found.append(Weight(f"layers/{ours}/scale", f"model.layers.{{}}.{theirs}.weight"))
  for ours, theirs in _MODULES.items():
    name = f"model.layers.{{}}.{theirs}"
    found.append(Weight(f"layers/{ours}/kernel", f"{name}.weight", transposed=True))
    found.append(Weight(f"layers/{ours}/bias", f"{name}.bias"))
  return [w for w in found if not (config.tied_head and w.path.startswith("lm_head"))]


def gguf_config(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> DecoderConfig:
  """From a GGUF file's metadata; what llama.cpp's architectures have in common.

  Raises:
    ValueError: the model is of a kind that is not supported.
  """
  architecture = metadata["general.architecture"]
  get = gguf_keys(metadata)
  heads = get["attention.head_count"]
  hidden = get["embedding_length"]
  size = get.get("attention.key_length", hidden // heads)
  if get.get("rope.dimension_count", size) != size:
    raise ValueError(
      f"partial rotation (rope.dimension_count below key_length) is not of {architecture}"
    )
  return DecoderConfig(
    family=NAME,
    vocab_size=get.get("vocab_size") or len(metadata["tokenizer.ggml.tokens"]),
    num_layers=get["block_count"],
    hidden_size=hidden,
    mlp_size=get["feed_forward_length"],
    num_heads=heads,
    num_kv_heads=get.get("attention.head_count_kv", heads),
    head_size=size,
    max_positions=get["context_length"],
    norm="rms",
    norm_eps=get["attention.layer_norm_rms_epsilon"],
    activation="silu",
    gated_mlp=True,
    qkv_bias="blk.0.attn_q.bias" in tensors,
    out_bias="blk.0.attn_output.bias" in tensors,
    mlp_bias="blk.0.ffn_up.bias" in tensors,
    tied_head="output.weight" not in tensors,
    rope=gguf_rope.read(get, tensors, size),
  )


def gguf_keys(metadata: Mapping[str, Any]) -> dict[str, Any]:
  """The keys of the file's architecture, without its name before them.

  Numbers are stored as float32; the shortest decimal that rounds to one is what the model's config
  said.
  """
  prefix = f"{metadata['general.architecture']}."
  return {
    key.removeprefix(prefix): _shortest(value) if isinstance(value, float) else value
    for key, value in metadata.items()
    if key.startswith(prefix)
  }


def gguf_metadata(config: DecoderConfig, architecture: str = NAME) -> dict[str, Any]:
  """The inverse of `gguf_config`, as far as llama.cpp has a key for it.

  What it has none for `gguf_config` reads otherwise than it is: whoever writes compares.

  Raises:
    ValueError: the model has no rotary positions.
  """
  found = {
    "vocab_size": config.vocab_size,
    "block_count": config.num_layers,
    "context_length": config.max_positions,
    "embedding_length": config.hidden_size,
    "feed_forward_length": config.mlp_size,
    "attention.head_count": config.num_heads,
    "attention.head_count_kv": config.num_kv_heads,
    "attention.key_length": config.head_size,
    "attention.value_length": config.head_size,
    "attention.layer_norm_rms_epsilon": float(config.norm_eps),
    "rope.dimension_count": config.head_size,
    **gguf_rope.write(_rope(config)),
  }
  prefixed = {f"{architecture}.{key}": value for key, value in found.items()}
  return {"general.architecture": architecture} | prefixed


def gguf_tensors(config: DecoderConfig) -> dict[str, np.ndarray]:
  """Tensors of a GGUF file that are no parameters of ours: what llama3's frequencies are over."""
  turn = _rope(config)
  if turn.kind != "llama3":
    return {}
  return {gguf_rope.FREQUENCIES: gguf_rope.frequencies(turn, config.head_size)}


def gguf_weights(
  config: DecoderConfig, norms: Mapping[str, str] = GGUF_NORMS, offset: float = 0.0
) -> list[Weight]:
  """llama.cpp's tensors.

  norms: our name of a layer's norm -> theirs. offset: see `Weight`, of norms.
  """
  # Only llama's queries and keys are reordered.
  q, k = (config.num_heads, config.num_kv_heads) if config.family == NAME else (0, 0)
  names = {
    "attention/q_proj": ("attn_q", q),
    "attention/k_proj": ("attn_k", k),
    "attention/v_proj": ("attn_v", 0),
    "attention/o_proj": ("attn_output", 0),
    "mlp/gate_proj": ("ffn_gate", 0),
    "mlp/up_proj": ("ffn_up", 0),
    "mlp/down_proj": ("ffn_down", 0),
  }
  found = [
    Weight("embed/embedding", "token_embd.weight"),
    Weight("final_norm/scale", "output_norm.weight", offset=offset),
    Weight("lm_head/kernel", "output.weight", transposed=True),
  ]
  head_norms = {"attention/q_norm": "attn_q_norm", "attention/k_norm": "attn_k_norm"}
  for ours, theirs in (*norms.items(), *head_norms.items()):
    found.append(Weight(f"layers/{ours}/scale", f"blk.{{}}.{theirs}.weight", offset=offset))
  for ours, (theirs, heads) in names.items():
    name = f"blk.{{}}.{theirs}"
    found.append(Weight(f"layers/{ours}/kernel", f"{name}.weight", transposed=True, heads=heads))
    found.append(Weight(f"layers/{ours}/bias", f"{name}.bias", heads=heads))
  return [w for w in found if not (config.tied_head and w.path.startswith("lm_head"))]


def modules(config: DecoderConfig) -> dict[str, tuple[str, tuple[int, int, int]]]:
  """Our projection's kernel, or table -> PEFT's module name and the part of it that we hold."""
  del config
  found = {
    f"layers/{ours}/kernel": (f"model.layers.{{}}.{theirs}", (0, 1, 1))
    for ours, theirs in _MODULES.items()
  }
  found["embed/embedding"] = ("model.embed_tokens", (0, 1, 1))
  return found | {"lm_head/kernel": ("lm_head", (0, 1, 1))}


def _rope(config: DecoderConfig) -> Rope:
  if config.rope is None:
    raise ValueError(f"a {config.family} has rotary positions; this model's are {config.positions}")
  return config.rope


def _activation(name: str) -> str:
  return {"swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}.get(name, name)


def _shortest(value: float) -> float:
  for digits in range(1, 10):
    text = float(f"{value:.{digits}g}")
    if abs(text - value) <= 1e-7 * abs(value):
      return text
  return value
