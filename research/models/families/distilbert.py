"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): a BERT without token types and pooler."""

from collections.abc import Iterable, Mapping
from typing import Any

from research.models.config import EncoderConfig
from research.models.families import encoders
from research.models.families.weights import Weight

NAME = "distilbert"
RENAMED = encoders.RENAMED
IGNORED = (r"distilbert\.embeddings\.position_ids", r"vocab_projector\.weight")

_NAMES = encoders.Names(
  prefix="distilbert",
  layer="transformer.layer.{}",
  parts={
    "attention/q_proj": "attention.q_lin",
    "attention/k_proj": "attention.k_lin",
    "attention/v_proj": "attention.v_lin",
    "attention/o_proj": "attention.out_lin",
    "attention_sum_norm": "sa_layer_norm",
    "mlp/up_proj": "ffn.lin1",
    "mlp/down_proj": "ffn.lin2",
    "mlp_sum_norm": "output_layer_norm",
  },
  embeddings={
    "embed": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
  },
  heads={
    "masked_head/transform": "vocab_transform",
    "masked_head/norm": "vocab_layer_norm",
    "classifier/dense": "pre_classifier",
    "classifier/out": "classifier",
  },
  bias="vocab_projector.bias",
)


def read_config(hf: Mapping[str, Any]) -> EncoderConfig:
  """From `config.json`."""
  encoders.refuse(hf, NAME, tie_word_embeddings=True)
  heads, hidden = hf["n_heads"], hf["dim"]
  return EncoderConfig(
    family=NAME,
    vocab_size=hf["vocab_size"],
    num_layers=hf["n_layers"],
    hidden_size=hidden,
    mlp_size=hf["hidden_dim"],
    num_heads=heads,
    num_kv_heads=heads,
    head_size=hidden // heads,
    max_positions=hf.get("max_position_embeddings", 512),
    norm_eps=1e-12,
    activation=encoders.read_activation(hf.get("activation", "gelu")),
    **encoders.SHAPE,
    dense="relu",
    **encoders.read_head(hf),
  )


def complete(config: EncoderConfig, tensors: Iterable[str]) -> EncoderConfig:
  """The config with what only the tensors tell."""
  return encoders.complete(config, _NAMES, tensors)


def write_config(config: EncoderConfig) -> dict[str, Any]:
  """The `config.json` that `transformers` reads."""
  return {
    "model_type": NAME,
    "vocab_size": config.vocab_size,
    "n_layers": config.num_layers,
    "dim": config.hidden_size,
    "hidden_dim": config.mlp_size,
    "n_heads": config.num_heads,
    "max_position_embeddings": config.max_positions,
    "activation": encoders.write_activation(config.activation),
    **encoders.write_head(config, "DistilBert"),
  }


def weights(config: EncoderConfig) -> list[Weight]:
  """Hugging Face's tensors."""
  return encoders.weights(config, _NAMES)


def modules(config: EncoderConfig) -> dict[str, tuple[str, tuple[int, int, int]]]:
  """Our projection's kernel -> PEFT's module name and the part of it that we hold."""
  return encoders.modules(config, _NAMES)
