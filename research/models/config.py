"""The shape of a decoder, independent of the checkpoint family it came from."""

import dataclasses

from research.nn.mlp import ACTIVATIONS
from research.nn.positions import Rope


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A decoder-only transformer.

  family: the checkpoint family that names its tensors (`research.models.families`).
  norm: "rms" or "layer". activation: a key of `research.nn.mlp.ACTIVATIONS`.
  rope: rotary embedding, or None for learned positions up to `max_positions`.
  """

  family: str
  vocab_size: int
  num_layers: int
  hidden_size: int
  mlp_size: int
  num_heads: int
  num_kv_heads: int
  head_size: int
  max_positions: int
  norm: str
  norm_eps: float
  activation: str
  gated_mlp: bool
  qkv_bias: bool
  out_bias: bool
  mlp_bias: bool
  tied_head: bool
  rope: Rope | None

  def __post_init__(self):
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f"activation {self.activation!r} is unknown; known: {', '.join(ACTIVATIONS)}"
      )
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
      )

  def flops_per_token(self, length: int) -> float:
    """Floating-point operations of one forward pass, a token, in rows of `length`.

    Two a weight of every projection and of the head, and attention's two products with
    the causal half of `length` keys (Chowdhery et al. 2022, PaLM, appendix B).
    """
    heads = (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_size
    mlp = (3 if self.gated_mlp else 2) * self.mlp_size
    layer = self.hidden_size * (heads + mlp)
    scores = self.num_heads * self.head_size * length
    return 2.0 * (self.num_layers * (layer + scores) + self.hidden_size * self.vocab_size)
