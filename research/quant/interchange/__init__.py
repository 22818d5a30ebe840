"""Kernels in few bits as the tensors of other tools, and back, bit for bit."""

from research.core import tree
from research.quant.interchange import awq, bitsandbytes, gptq, torchao
from research.quant.interchange.convention import Convention

# By their name in `quantization_config.quant_method` of a `config.json`.
CONVENTIONS: dict[str, Convention] = {
  "gptq": gptq,
  "awq": awq,
  "bitsandbytes": bitsandbytes,
  "torchao": torchao,
}


def find(name: str) -> Convention:
  """The convention of that name.

  Raises:
    ValueError: there is none.
  """
  if name not in CONVENTIONS:
    raise ValueError(
      f"quant_method {name!r} is unknown; known: {', '.join(CONVENTIONS)}, research"
      f"{tree.nearest(name, CONVENTIONS)}"
    )
  return CONVENTIONS[name]


__all__ = ["CONVENTIONS", "Convention", "find"]
