"""The shape of an encoder-decoder, independent of the checkpoint family it came from."""

import dataclasses
from typing import ClassVar

from research.models.config import StackConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(StackConfig):
  """A decoder with cross-attention, and the encoder whose output it attends to.

  The fields of `StackConfig` describe both; `num_layers` are the decoder's. Positions are T5's
  relative ones, so that `max_positions` says only what lengths the model was made for.

  tied_head: the head is the table of embeddings.
  encoder_layers: of the encoder.
  relative_buckets, relative_longest: see `research.nn.bias.relative_buckets`.
  head_scale: multiplies what the head reads.
  start_id: the token that the decoder begins with.
  """

  task_type: ClassVar[str | None] = "SEQ_2_SEQ_LM"

  tied_head: bool
  encoder_layers: int
  relative_buckets: int = 32
  relative_longest: int = 128
  head_scale: float | None = None
  start_id: int = 0

  def __post_init__(self):
    super().__post_init__()
    if self.encoder_layers < 1:
      raise ValueError(f"an encoder-decoder with {self.encoder_layers} encoder_layers has none")

  def flops_per_token(self, length: int) -> float:
    """Floating-point operations of one forward pass, a token, in pairs of `length` tokens a side.

    As `DecoderConfig.flops_per_token`, half of the tokens being the encoder's, which see all
    `length` tokens of their side, and half the decoder's, which also attend to the source. Each
    source token's keys and values for cross-attention are part of its cost.
    """
    own = (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_size
    mlp = (3 if self.gated_mlp else 2) * self.mlp_size
    encoder = self.encoder_layers * self.hidden_size * (own + mlp)
    decoder = self.num_layers * self.hidden_size * (2 * own + mlp)
    keys = self.num_heads * self.head_size * length
    scores = 2 * self.encoder_layers * keys + (1 + 2) * self.num_layers * keys
    return float(encoder + decoder + scores + self.hidden_size * self.vocab_size)
