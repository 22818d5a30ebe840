"""T5 1.0, 1.1 and flan-T5 (Raffel et al. 2020, arXiv:1910.10683; Shazeer 2020)."""

from collections.abc import Mapping
from typing import Any

from research.models.encoder_decoder_config import EncoderDecoderConfig
from research.models.families.weights import Weight

NAME = "t5"
ARCHITECTURE = "T5ForConditionalGeneration"
# Copies of the shared embedding, and a table that old checkpoints have and nothing reads.
IGNORED = (
  r"(en|de)coder\.embed_tokens\.weight",
  r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "swish": "silu"}
# Our sub-layer -> its number and name in a block, by side.
_SUBLAYERS = {
  "encoder": {"attention": (0, "SelfAttention"), "mlp": (1, "DenseReluDense")},
  "decoder": {
    "attention": (0, "SelfAttention"),
    "cross_attention": (1, "EncDecAttention"),
    "mlp": (2, "DenseReluDense"),
  },
}


def read_config(hf: Mapping[str, Any]) -> EncoderDecoderConfig:
  """From `config.json`."""
  gated, _, activation = hf.get("feed_forward_proj", "relu").rpartition("-")
  if gated not in ("", "gated"):
    raise ValueError(
      f"t5 with feed_forward_proj={hf['feed_forward_proj']!r} is not supported; only an"
      " activation, or 'gated-' and an activation"
    )
  activation = _ACTIVATIONS.get(activation, activation)
  if gated and activation == "gelu":
    activation = "gelu_tanh"
  # Version 1.0 scales what the tied head reads, 1.1 has a head of its own. transformers 5 calls
  # every T5 tied and keeps the difference in another key.
  first = hf.get("tie_word_embeddings", True) and hf.get("scale_decoder_outputs", True)
  hidden = hf["d_model"]
  return EncoderDecoderConfig(
    family=NAME,
    vocab_size=hf["vocab_size"],
    num_layers=hf.get("num_decoder_layers") or hf["num_layers"],
    hidden_size=hidden,
    mlp_size=hf["d_ff"],
    num_heads=hf["num_heads"],
    num_kv_heads=hf["num_heads"],
    head_size=hf["d_kv"],
    max_positions=hf.get("n_positions", 512),
    norm="rms",
    norm_eps=hf.get("layer_norm_epsilon", 1e-6),
    activation=activation,
    gated_mlp=bool(gated),
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    tied_head=first,
    attention_scale=1.0,
    encoder_layers=hf["num_layers"],
    relative_buckets=hf.get("relative_attention_num_buckets", 32),
    relative_longest=hf.get("relative_attention_max_distance", 128),
    head_scale=hidden**-0.5 if first else None,
    start_id=hf.get("decoder_start_token_id") or hf.get("pad_token_id") or 0,
  )


def write_config(config: EncoderDecoderConfig) -> dict[str, Any]:
  """The `config.json` that `transformers` reads."""
  name = config.activation
  if name == "gelu_tanh":
    name = "gelu" if config.gated_mlp else "gelu_new"  # "gated-gelu" is the approximate one
  return {
    "architectures": [ARCHITECTURE],
    "model_type": NAME,
    "is_encoder_decoder": True,
    "vocab_size": config.vocab_size,
    "d_model": config.hidden_size,
    "d_kv": config.head_size,
    "d_ff": config.mlp_size,
    "num_layers": config.encoder_layers,
    "num_decoder_layers": config.num_layers,
    "num_heads": config.num_heads,
    "n_positions": config.max_positions,
    "relative_attention_num_buckets": config.relative_buckets,
    "relative_attention_max_distance": config.relative_longest,
    "layer_norm_epsilon": config.norm_eps,
    "feed_forward_proj": f"gated-{name}" if config.gated_mlp else name,
    "tie_word_embeddings": config.tied_head,
    "decoder_start_token_id": config.start_id,
  }


def weights(config: EncoderDecoderConfig) -> list[Weight]:
  """Hugging Face's tensors."""
  found = [Weight("embed/embedding", "shared.weight")]
  for side, sublayers in _SUBLAYERS.items():
    table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    found.append(Weight(f"{side}/relative_bias/embedding", table))
    found.append(Weight(f"{side}/final_norm/scale", f"{side}.final_layer_norm.weight"))
    for ours, (number, _) in sublayers.items():
      name = f"{side}.block.{{}}.layer.{number}.layer_norm.weight"
      found.append(Weight(f"{side}/layers/{ours}_norm/scale", name))
  for path, (module, _) in modules(config).items():
    found.append(Weight(path, f"{module}.weight", transposed=True))
  return [w for w in found if not (config.tied_head and w.path.startswith("lm_head"))]


def modules(config: EncoderDecoderConfig) -> dict[str, tuple[str, tuple[int, int, int]]]:
  """Our projection's kernel -> PEFT's module name and the part of it that we hold."""
  attention = {f"{name}_proj": name for name in "qkvo"}
  gated = {"gate_proj": "wi_0", "up_proj": "wi_1", "down_proj": "wo"}
  mlp = gated if config.gated_mlp else {"up_proj": "wi", "down_proj": "wo"}
  found = {}
  for side, sublayers in _SUBLAYERS.items():
    for sublayer, (number, name) in sublayers.items():
      for ours, theirs in (mlp if sublayer == "mlp" else attention).items():
        module = f"{side}.block.{{}}.layer.{number}.{name}.{theirs}"
        found[f"{side}/layers/{sublayer}/{ours}/kernel"] = (module, (0, 1, 1))
  return found | {"lm_head/kernel": ("lm_head", (0, 1, 1))}


def initial_std(config: EncoderDecoderConfig) -> list[tuple[str, float]]:
  """Rules (path regex, standard deviation) of weights before training, as T5's authors draw them.

  Queries have the deviation that the scores' missing scale would give them.
  """
  model, heads = config.hidden_size**-0.5, (config.num_heads * config.head_size) ** -0.5
  return [
    (r".*attention/q_proj/kernel", model * config.head_size**-0.5),
    (r".*attention/o_proj/kernel", heads),
    (r".*mlp/down_proj/kernel", config.mlp_size**-0.5),
    (r"embed/embedding", 1.0),
    (r".*/kernel|.*relative_bias/embedding", model),
  ]
