"""What each family of checkpoints calls its config keys and its tensors."""

from types import ModuleType

from research.core import tree
from research.models.families import (
  bert,
  distilbert,
  gemma2,
  gemma3,
  gpt2,
  llama,
  mistral,
  mixtral,
  olmo2,
  phi3,
  plain,
  qwen2,
  qwen3,
  qwen3_moe,
  roberta,
  t5,
)

FAMILIES: dict[str, ModuleType] = {
  module.NAME: module
  for module in (
    llama,
    gpt2,
    mistral,
    mixtral,
    qwen2,
    qwen3,
    qwen3_moe,
    gemma2,
    gemma3,
    olmo2,
    phi3,
    bert,
    roberta,
    distilbert,
    t5,
    plain,
  )
}
# By llama.cpp's names.
GGUF_FAMILIES: dict[str, ModuleType] = {
  "llama": llama,
  "qwen2": qwen2,
  "qwen3": qwen3,
  "gemma2": gemma2,
  "gemma3": gemma3,
}


def find(name: str, families: dict[str, ModuleType] = FAMILIES) -> ModuleType:
  """The family of that name.

  Raises:
    ValueError: there is none; the message lists those there are.
  """
  if name not in families:
    raise ValueError(
      f"model family {name!r} is unknown; known: {', '.join(families)}"
      f"{tree.nearest(name, families)}"
    )
  return families[name]
