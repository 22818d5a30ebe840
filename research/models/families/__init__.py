"""What each family of checkpoints calls its config keys and its tensors."""

from types import ModuleType

from research.core import tree
from research.models.families import gpt2, llama

FAMILIES: dict[str, ModuleType] = {module.NAME: module for module in (llama, gpt2)}
GGUF_FAMILIES: dict[str, ModuleType] = {"llama": llama}


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
