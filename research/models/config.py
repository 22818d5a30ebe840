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

  What most families lack has a default:
  pre_norm, post_norm: whether sub-layers have a norm before them, and one after.
  qk_norm: norm of queries and keys, by "head" or over the whole "projection".
  attention_scale: of scores, by default `1 / sqrt(head_size)`.
  attention_softcap, logit_softcap: `x` becomes `cap * tanh(x / cap)`.
  embedding_scale: multiplies the embeddings of tokens.
  windows: tokens that a query sees, itself included, a layer each; 0 is no limit, () none
    anywhere.
  local_rope: rotary embedding of the layers with a window, by default `rope`.
  num_experts: of a layer's feed-forward, each of `mlp_size` and gated, without biases; 0 is a
    plain feed-forward. experts_per_token: how many of them a token goes to.
  normalize_experts: the weights of those sum to 1.
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
  num_experts: int = 0
  experts_per_token: int = 0
  normalize_experts: bool = True

  def __post_init__(self):
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f"activation {self.activation!r} is unknown; known: {', '.join(ACTIVATIONS)}"
      )
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
      )
    if self.windows and len(self.windows) != self.num_layers:
      raise ValueError(f"{len(self.windows)} windows are given for {self.num_layers} layers")
    if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
      raise ValueError(
        f"a token goes to 1 to {self.num_experts} experts, not to {self.experts_per_token}"
      )
    if self.num_experts and (self.mlp_bias or not self.gated_mlp):
      raise ValueError("experts are gated and have no biases: gated_mlp=True, mlp_bias=False")

  def rope_within(self, window: int) -> Rope | None:
    """The rotary embedding of layers with that window."""
    return self.local_rope if window and self.local_rope else self.rope

  def active(self, path: str) -> float:
    """The share of the parameter at `path`, or of its adapter, that one token meets."""
    return self.experts_per_token / self.num_experts if "/experts/" in path else 1.0

  def flops_per_token(self, length: int) -> float:
    """Floating-point operations of one forward pass, a token, in rows of `length`.

    Two a weight of every projection that a token goes through and of the head, and attention's
    two products with the causal half of `length` keys, or what a window leaves of it (Chowdhery et
    al. 2022, PaLM, appendix B).
    """
    heads = (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_size
    mlp = (3 if self.gated_mlp else 2) * self.mlp_size * (self.experts_per_token or 1)
    mlp += self.num_experts  # the router
    layer = self.hidden_size * (heads + mlp)
    length, keys = max(length, 1), 0.0
    for window in self.windows or (0,) * self.num_layers:
      window = min(window or length, length)
      keys += 2 * window - window**2 / length
    scores = self.num_heads * self.head_size * keys
    return 2.0 * (self.num_layers * layer + scores + self.hidden_size * self.vocab_size)
