"""The encoder: embeddings, a stack of blocks whose tokens see each other both ways, and a head.

B batch, S sequence, D model, V vocabulary, C classes.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from research.core.products import matmul
from research.models import straight
from research.models.config import EncoderConfig
from research.models.heads import Classifier, MaskedHead
from research.nn import mask as masks
from research.nn.block import Context, stack
from research.nn.embed import Embed
from research.nn.linear import Linear
from research.nn.norm import Norm


class Encoder(nn.Module):
  """An encoder-only transformer; methods bind at its taps and are unknown to it.

  dtype: the type of activations; products accumulate in float32.
  remat, unroll, attention: see `research.nn.block.stack`.
  """

  config: EncoderConfig
  dtype: Any = jnp.float32
  remat: bool | str = False
  unroll: int = 0
  attention: str = "auto"

  def setup(self):
    c = self.config
    self.embed = Embed(c.vocab_size, c.hidden_size, self.dtype)
    rows = c.max_positions + c.position_offset
    self.position_embed = Embed(rows, c.hidden_size, self.dtype, name="positions")
    if c.token_types:
      self.type_embed = Embed(c.token_types, c.hidden_size, self.dtype, name="token_types")
    self.embed_norm = Norm(c.norm, c.norm_eps)
    self.layers = straight.stack(self) or stack(
      c, c.num_layers, remat=self.remat, unroll=self.unroll, attention=self.attention
    )
    if c.pooler:
      self.pooler = Linear(c.hidden_size, use_bias=True)
    if c.head == "masked":
      self.masked_head = MaskedHead(c)
    elif c.head is not None:
      dense = c.dense if c.head == "sequence" else None
      self.classifier = Classifier(len(c.labels), dense)

  def __call__(self, tokens, positions=None, segments=None, types=None):
    """What `head` makes of `hidden`, which without a head is `hidden` itself.

    Args: see `hidden`.
    """
    out = self.hidden(tokens, positions, segments, types)
    if self.is_initializing() and self.config.pooler:
      self.pooler(out)  # which few heads need and every checkpoint with one keeps
    return out if self.config.head is None else self.head(out)

  def hidden(self, tokens, positions=None, segments=None, types=None):
    """The last layer's output `[B, S, D]`; if the head pools by mean, its mean over each document.

    Args:
      tokens: int32 `[B, S]`.
      positions: int32 `[B, S]`, by default 0, 1, ... in each row.
      segments: int32 `[B, S]`: tokens see those of the same number, 0 being padding; by default
        a row is one document.
      types: int32 `[B, S]`, the kind of each token where the family has kinds; by default 0.
    """
    c = self.config
    if positions is None:
      positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    if segments is None:
      segments = jnp.ones_like(tokens)
    x = self.embed(tokens)
    if c.token_types:
      x = x + self.type_embed(jnp.zeros_like(tokens) if types is None else types)
    x = self.embed_norm(x + self.position_embed(positions + c.position_offset))
    together = masks.same(segments, segments)
    x, _ = self.layers(x, Context(None, together, segments=segments), None, None)
    return _means(x, together) if c.pooling == "mean" else x

  def pooled(self, hidden):
    """The pooler's `[..., D]` of `hidden [..., D]`, meant for first tokens."""
    if not self.config.pooler:
      raise ValueError(f"this {self.config.family} has no pooler")
    return jnp.tanh(self.pooler(hidden))

  @property
  def head_names(self) -> tuple[str, ...]:
    """The top-level names of the variables that `head` reads."""
    c = self.config
    if c.head == "masked":
      return ("embed", "masked_head")
    return ("pooler", "classifier") if self._pools else ("classifier",)

  @property
  def _pools(self) -> bool:
    return self.config.head == "sequence" and self.config.dense is None

  def head(self, hidden):
    """`[..., D]` -> float32 logits `[..., V]` of a masked head, else `[..., C]`."""
    if self.config.head is None:
      raise ValueError(
        f"this {self.config.family} has no head; config.model.head gives it one, as in"
        " {'name': 'masked'}"
      )
    if self.config.head == "masked":
      return self.masked_head(hidden, self.embed)
    return self.classifier(self.pooled(hidden) if self._pools else hidden)


def _means(x, together):
  """Of `x [B, S, D]` over the tokens that are `together [B, S, S]`."""
  sums = matmul(together.astype(x.dtype), x, (2, 1), 1)
  return (sums / together.sum(axis=-1, keepdims=True)).astype(x.dtype)
