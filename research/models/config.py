"""The shape of a model, independent of the checkpoint family it came from."""

import dataclasses
from typing import ClassVar

from research.core import tree
from research.nn.mlp import ACTIVATIONS
from research.nn.positions import Rope

POSITIONS = ("learned", "sinusoidal", "alibi")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
  """Embeddings and a stack of equal layers: what `research.nn.block.Block` reads.

  family: the checkpoint family that names its tensors (`research.models.families`).
  norm: "rms" or "layer". activation: a key of `research.nn.mlp.ACTIVATIONS`.

  What most families lack has a default:
  pre_norm, post_norm: whether sub-layers have a norm before them, and one after.
  sum_norm: a norm of the sum of each sub-layer with its input (the first transformers, BERT).
  qk_norm: norm of queries and keys, by "head" or over the whole "projection".
  attention_scale: of scores, by default `1 / sqrt(head_size)`.
  attention_softcap: `x` becomes `cap * tanh(x / cap)`.
  num_experts: of a layer's feed-forward, each of `mlp_size` and gated, without biases; 0 is a
    plain feed-forward. experts_per_token: how many of them a token goes to.
  normalize_experts: the weights of those sum to 1.

  task_type: what PEFT calls models of this kind.
  """

  task_type: ClassVar[str | None] = None

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
  pre_norm: bool = True
  post_norm: bool = False
  sum_norm: bool = False
  qk_norm: str | None = None
  attention_scale: float | None = None
  attention_softcap: float | None = None
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
    if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
      raise ValueError(
        f"a token goes to 1 to {self.num_experts} experts, not to {self.experts_per_token}"
      )
    if self.num_experts and (self.mlp_bias or not self.gated_mlp):
      raise ValueError("experts are gated and have no biases: gated_mlp=True, mlp_bias=False")

  def active(self, path: str) -> float:
    """The share of the parameter at `path`, or of its adapter, that one token meets."""
    return self.experts_per_token / self.num_experts if "/experts/" in path else 1.0

  def layer_weights(self) -> int:
    """The elements of the projections of one layer that a token goes through."""
    heads = (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_size
    mlp = (3 if self.gated_mlp else 2) * self.mlp_size * (self.experts_per_token or 1)
    mlp += self.num_experts  # the router
    return self.hidden_size * (heads + mlp)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(StackConfig):
  """A decoder-only transformer.

  rope: rotary embedding, or None for other `positions`.
  logit_softcap: as `attention_softcap`.
  embedding_scale: multiplies the embeddings of tokens.
  windows: tokens that a query sees, itself included, a layer each; 0 is no limit, () none
    anywhere.
  local_rope: rotary embedding of the layers with a window, by default `rope`.
  positions: one of `POSITIONS`, for models without `rope`: "learned" ones up to `max_positions`,
    "sinusoidal" ones added to embeddings, or "alibi", a bias of scores (`research.nn.bias`).
  head: None tells the next token, "score" is a number for a text, as a reward model gives it.
  """

  task_type: ClassVar[str | None] = "CAUSAL_LM"

  tied_head: bool
  rope: Rope | None
  logit_softcap: float | None = None
  embedding_scale: float | None = None
  windows: tuple[int, ...] = ()
  local_rope: Rope | None = None
  positions: str = "learned"
  head: str | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.head not in (None, "score"):
      raise ValueError(f"head {self.head!r} of a decoder is unknown; known: score")
    if self.windows and len(self.windows) != self.num_layers:
      raise ValueError(f"{len(self.windows)} windows are given for {self.num_layers} layers")
    if self.positions not in POSITIONS:
      raise ValueError(
        f"positions {self.positions!r} are unknown; known: {', '.join(POSITIONS)}"
        f"{tree.nearest(self.positions, POSITIONS)}"
      )
    if self.rope is not None and self.positions != "learned":
      raise ValueError(f"a model with rope has no {self.positions} positions; its rope is None")

  def rope_within(self, window: int) -> Rope | None:
    """The rotary embedding of layers with that window."""
    return self.local_rope if window and self.local_rope else self.rope

  def flops_per_token(self, length: int) -> float:
    """Floating-point operations of one forward pass, a token, in rows of `length`.

    Two a weight of every projection that a token goes through and of the head, and attention's
    two products with the causal half of `length` keys, or what a window leaves of it (Chowdhery et
    al. 2022, PaLM, appendix B).
    """
    length, keys = max(length, 1), 0.0
    for window in self.windows or (0,) * self.num_layers:
      window = min(window or length, length)
      keys += 2 * window - window**2 / length
    scores = self.num_heads * self.head_size * keys
    layers = self.num_layers * self.layer_weights()
    head = 0 if self.head else self.hidden_size * self.vocab_size  # a score is of one token
    return 2.0 * (layers + scores + head)


HEADS = ("masked", "sequence", "token")
POOLINGS = ("first", "mean")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(StackConfig):
  """A transformer whose tokens see each other both ways (BERT and its like).

  max_positions: of the longest document; the table of positions has `position_offset` more rows
    before those in use.
  token_types: kinds of tokens that have an embedding of their own, 0 for none.
  pooler: there is a projection with tanh for the first token, trained with the encoder.
  head: "masked" predicts hidden tokens, "sequence" a class of each document at its first token,
    "token" one of each token; None leaves the hidden states.
  labels: names of the classes.
  dense: activation of the projection that begins a "sequence" head; None: that one is the pooler.
  pooling: what a "sequence" head reads: "first", the first token, or "mean", that of all tokens.
  """

  token_types: int = 0
  position_offset: int = 0
  pooler: bool = False
  head: str | None = None
  labels: tuple[str, ...] = ()
  dense: str | None = None
  pooling: str = "first"

  def __post_init__(self):
    super().__post_init__()
    if self.pooling not in POOLINGS:
      raise ValueError(
        f"pooling {self.pooling!r} is unknown; known: {', '.join(POOLINGS)}"
        f"{tree.nearest(self.pooling, POOLINGS)}"
      )
    if self.pooling == "mean" and self.head != "sequence":
      raise ValueError(f"pooling by mean is of a sequence head, not of head {self.head!r}")
    if self.head not in (None, *HEADS):
      raise ValueError(f"head {self.head!r} is unknown; known: {', '.join(HEADS)}")
    if bool(self.labels) != (self.head in ("sequence", "token")):
      raise ValueError(f"head {self.head!r} with {len(self.labels)} labels: classes need labels")
    if self.head == "sequence" and self.dense is None and not self.pooler:
      raise ValueError("a sequence head without a projection of its own needs the pooler")

  def flops_per_token(self, length: int) -> float:
    """Floating-point operations of one forward pass, a token, in rows of `length`.

    Two a weight of every projection of the layers, and attention's two products with all keys.
    A head is not counted: few tokens go through it.
    """
    scores = 2 * self.num_heads * self.head_size * max(length, 1)
    return 2.0 * self.num_layers * (self.layer_weights() + scores)
