"""BERT (Devlin et al. 2018, arXiv:1810.04805), and MiniLM, which has its shape."""

from collections.abc import Iterable, Mapping
from typing import Any

from research.models.config import EncoderConfig
from research.models.families import encoders
from research.models.families.weights import Weight

NAME = "bert"
RENAMED = encoders.RENAMED
# Buffers, copies of what is tied, and the next-sentence head, which nothing here uses.
IGNORED = (
  r"bert\.embeddings\.position_ids",
  r"cls\.predictions\.decoder\.(weight|bias)",
  r"cls\.seq_relationship\.(weight|bias)",
)

PARTS = {
  "attention/q_proj": "attention.self.query",
  "attention/k_proj": "attention.self.key",
  "attention/v_proj": "attention.self.value",
  "attention/o_proj": "attention.output.dense",
  "attention_sum_norm": "attention.output.LayerNorm",
  "mlp/up_proj": "intermediate.dense",
  "mlp/down_proj": "output.dense",
  "mlp_sum_norm": "output.LayerNorm",
}
EMBEDDINGS = {
  "embed": "embeddings.word_embeddings",
  "positions": "embeddings.position_embeddings",
  "token_types": "embeddings.token_type_embeddings",
}
_NAMES = encoders.Names(
  prefix="bert",
  layer="encoder.layer.{}",
  parts=PARTS,
  embeddings=EMBEDDINGS,
  heads={
    "pooler": "bert.pooler.dense",
    "masked_head/transform": "cls.predictions.transform.dense",
    "masked_head/norm": "cls.predictions.transform.LayerNorm",
    "classifier/out": "classifier",
  },
  bias="cls.predictions.bias",
)


def read_config(hf: Mapping[str, Any]) -> EncoderConfig:
  """From `config.json`; a model without a head, and a classifier of documents, have a pooler."""
  encoders.refuse(
    hf,
    hf.get("model_type", NAME),
    is_decoder=False,
    add_cross_attention=False,
    position_embedding_type="absolute",
    tie_word_embeddings=True,
  )
  heads, hidden = hf["num_attention_heads"], hf["hidden_size"]
  head = encoders.read_head(hf)
  return EncoderConfig(
    family=NAME,
    vocab_size=hf["vocab_size"],
    num_layers=hf["num_hidden_layers"],
    hidden_size=hidden,
    mlp_size=hf["intermediate_size"],
    num_heads=heads,
    num_kv_heads=heads,
    head_size=hidden // heads,
    max_positions=hf.get("max_position_embeddings", 512),
    norm_eps=hf.get("layer_norm_eps", 1e-12),
    activation=encoders.read_activation(hf.get("hidden_act", "gelu")),
    **encoders.SHAPE,
    token_types=hf.get("type_vocab_size", 2),
    pooler=head["head"] in (None, "sequence"),
    **head,
  )


def complete(config: EncoderConfig, tensors: Iterable[str]) -> EncoderConfig:
  """The config with what only the tensors tell."""
  return encoders.complete(config, _NAMES, tensors)


def write_config(config: EncoderConfig) -> dict[str, Any]:
  """The `config.json` that `transformers` reads."""
  return {
    "model_type": NAME,
    "vocab_size": config.vocab_size,
    "num_hidden_layers": config.num_layers,
    "hidden_size": config.hidden_size,
    "intermediate_size": config.mlp_size,
    "num_attention_heads": config.num_heads,
    "max_position_embeddings": config.max_positions,
    "layer_norm_eps": config.norm_eps,
    "hidden_act": encoders.write_activation(config.activation),
    "type_vocab_size": config.token_types,
    **encoders.write_head(config, "Bert"),
  }


def weights(config: EncoderConfig) -> list[Weight]:
  """Hugging Face's tensors."""
  return encoders.weights(config, _NAMES)


def modules(config: EncoderConfig) -> dict[str, tuple[str, tuple[int, int, int]]]:
  """Our projection's kernel -> PEFT's module name and the part of it that we hold."""
  return encoders.modules(config, _NAMES)
