"""The shape of a decoder, independent of the checkpoint family it came from."""

import dataclasses

from research.core import tree
from research.nn.mlp import ACTIVATIONS
from research.nn.positions import Rope

POSITIONS = ("learned", "sinusoidal", "alibi")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A decoder-only transformer.

  family: the checkpoint family that names its tensors (`research.models.families`).
  norm: "rms" or "layer". activation: a key of `research.nn.mlp.ACTIVATIONS`.
  rope: rotary embedding, or None for other `positions`.

  What most families lack has a default:
  pre_norm, post_norm: whether sub-layers have a norm before them, and one after.
  qk_norm: norm of queries and keys, by "head" or over the whole "projection".
  attention_scale: of scores, by default `1 / sqrt(head_size)`.
  attention_softcap, logit_softcap: `x` becomes `cap * tanh(x / cap)`.
  embedding_scale: multiplies the embeddings of tokens.
  windows: tokens that a query sees, itself included, a layer each; 0 is no limit, () none
    anywhere.
  local_rope: rotary embedding of the layers with a window, by default `rope`.
  positions: one of `POSITIONS`, for models without `rope`: "learned" ones up to `max_positions`,
    "sinusoidal" ones added to embeddings, or "alibi", a bias of scores (`research.nn.bias`).
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
  pre_norm: bool = True
  post_norm: bool = False
  qk_norm: str | None = None
  attention_scale: float | None = None
  attention_softcap: float | None = None
  logit_softcap: float | None = None
  embedding_scale: float | None = None
  windows: tuple[int, ...] = ()
  local_rope: Rope | None = None
  positions: str = "learned"

  def __post_init__(self):
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f"activation {self.activation!r} is unknown; known: {', '.join(ACTIVATIONS)}"
      )
    if self.positions not in POSITIONS:
      raise ValueError(
        f"positions {self.positions!r} are unknown; known: {', '.join(POSITIONS)}"
        f"{tree.nearest(self.positions, POSITIONS)}"
      )
    if self.rope is not None and self.positions != "learned":
      raise ValueError(f"a model with rope has no {self.positions} positions; its rope is None")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
      )
    if self.windows and len(self.windows) != self.num_layers:
      raise ValueError(f"{len(self.windows)} windows are given for {self.num_layers} layers")

  def rope_within(self, window: int) -> Rope | None:
    """The rotary embedding of layers with that window."""
    return self.local_rope if window and self.local_rope else self.rope

  def flops_per_token(self, length: int) -> float:
    """Floating-point operations of one forward pass, a token, in rows of `length`.

    Two a weight of every projection and of the head, and attention's two products with
    the causal half of `length` keys, or what a window leaves of it (Chowdhery et al. 2022,
    PaLM, appendix B).
    """
    heads = (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_size
    mlp = (3 if self.gated_mlp else 2) * self.mlp_size
    layer = self.hidden_size * (heads + mlp)
    length, keys = max(length, 1), 0.0
    for window in self.windows or (0,) * self.num_layers:
      window = min(window or length, length)
      keys += 2 * window - window**2 / length
    scores = self.num_heads * self.head_size * keys
    return 2.0 * (self.num_layers * layer + scores + self.hidden_size * self.vocab_size)
