"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): a BERT whose positions begin after the padding's,
with one projection and tanh in its classifier."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from research.models.config import EncoderConfig
from research.models.families import bert, encoders
from research.models.families.weights import Weight

NAME = "roberta"
RENAMED = encoders.RENAMED
IGNORED = (r"roberta\.embeddings\.position_ids", r"lm_head\.decoder\.(weight|bias)")

_NAMES = encoders.Names(
  prefix="roberta",
  layer="encoder.layer.{}",
  parts=bert.PARTS,
  embeddings=bert.EMBEDDINGS,
  heads={
    "pooler": "roberta.pooler.dense",
    "masked_head/transform": "lm_head.dense",
    "masked_head/norm": "lm_head.layer_norm",
    "classifier/dense": "classifier.dense",
    "classifier/out": "classifier.out_proj",
  },
  bias="lm_head.bias",
)


def read_config(hf: Mapping[str, Any]) -> EncoderConfig:
  """From `config.json`."""
  config = bert.read_config({"type_vocab_size": 1, **hf})
  if config.head == "masked":  # whose activation does not follow the layers'
    encoders.refuse(hf, f"{NAME} with a masked head", hidden_act="gelu")
  offset = hf.get("pad_token_id", 1) + 1
  return dataclasses.replace(
    config,
    family=NAME,
    max_positions=config.max_positions - offset,
    position_offset=offset,
    pooler=config.head is None,
    dense="tanh",
  )


def complete(config: EncoderConfig, tensors: Iterable[str]) -> EncoderConfig:
  """The config with what only the tensors tell."""
  return encoders.complete(config, _names(config), tensors)


def write_config(config: EncoderConfig) -> dict[str, Any]:
  """The `config.json` that `transformers` reads."""
  return bert.write_config(config) | {
    "model_type": NAME,
    "max_position_embeddings": config.max_positions + config.position_offset,
    "pad_token_id": config.position_offset - 1,
    **encoders.write_head(config, "Roberta"),
  }


def weights(config: EncoderConfig) -> list[Weight]:
  """Hugging Face's tensors."""
  return encoders.weights(config, _names(config))


def modules(config: EncoderConfig) -> dict[str, tuple[str, tuple[int, int, int]]]:
  """Our projection's kernel -> PEFT's module name and the part of it that we hold."""
  return encoders.modules(config, _names(config))


def _names(config: EncoderConfig) -> encoders.Names:
  if config.head != "token":
    return _NAMES
  return dataclasses.replace(_NAMES, heads={**_NAMES.heads, "classifier/out": "classifier"})
