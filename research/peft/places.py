"""What parameters tell of the model that they are of."""

from collections.abc import Mapping
from typing import Any


def require_decoder(params: Mapping[str, Any], what: str) -> None:
  """Raises ValueError if the flat `params` are not a decoder's: `what` is for those."""
  if "final_norm/scale" not in params:  # which encoders lack and encoder-decoders have twice
    kind = "encoder-decoder" if any(path.startswith("decoder/") for path in params) else "encoder"
    raise ValueError(f"{what} is for decoders, and this model is an {kind}")
