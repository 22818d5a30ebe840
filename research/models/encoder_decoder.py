"""The encoder-decoder: an encoder over the source, and a decoder that attends to its output.

B batch, S sequence of the decoder, S' of the encoder, T cache slots, D model, V vocabulary,
L layers, N kv heads, K head size.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from research.models.cache import Cache
from research.models.encoder_decoder_config import EncoderDecoderConfig
from research.nn import bias as biases
from research.nn import mask as masks
from research.nn.block import Context, stack
from research.nn.embed import Embed
from research.nn.incremental import Slots
from research.nn.linear import Linear
from research.nn.norm import Norm


@struct.dataclass
class CrossCache(Cache):
  """A `Cache` of the decoder's tokens, with what it attends to of the source.

  cross: `Slots` of the source, S' of them; copies of a row share its source, so that `take` leaves
    them where they are.
  source: bool `[B, S']`, which of them are tokens.
  """

  cross: Any
  source: jax.Array

  def expand(self, copies: int, slots: int) -> "CrossCache":
    """See `Cache.expand`."""
    cross = jax.tree.map(lambda kept: jnp.repeat(kept, copies, axis=1), self.cross)
    source = jnp.repeat(self.source, copies, axis=0)
    grown: Any = super().expand(copies, slots)
    return grown.replace(cross=cross, source=source)


class Stack(nn.Module):
  """The layers of one side, with T5's bias of relative positions and a norm after the last."""

  config: EncoderDecoderConfig
  num_layers: int
  bidirectional: bool
  remat: bool | str
  unroll: int
  attention: str

  def setup(self):
    c = self.config
    self.relative_bias = biases.RelativeBias(
      c.num_heads, self.bidirectional, c.relative_buckets, c.relative_longest
    )
    self.layers = stack(
      c, self.num_layers, remat=self.remat, unroll=self.unroll, attention=self.attention
    )
    self.final_norm = Norm(c.norm, c.norm_eps)

  def __call__(self, x, mask, cross=None, cache=None, places=None):
    """`x [B, S, D]` -> `[B, S, D]` and the layers' caches.

    Args:
      mask: bool `[B, S, T]`.
      cross: the `Context` of cross-attention, or None.
      cache: None, or a pair: what the layers have of their own tokens and of the source, and the
        first slot to write.
      places: with a cache, the positions of queries `[B, S]` and slots `[B, T]`.
    """
    if cache is None:
      kept, start = None, None
      bias = biases.in_rows(self.relative_bias, *mask.shape[1:])
    else:
      kept, start = cache
      bias = biases.in_cache(self.relative_bias, *places)
    causal = cache is None and not self.bidirectional
    # As `models.unrolled` reads a cache with one query on a CPU.
    one = kept is not None and x.shape[1] == 1 and jax.default_backend() == "cpu"
    elementwise = one and kept[0].dtype == jnp.float32
    if cross is not None:
      cross = cross.replace(elementwise=elementwise)
    context = Context(None, mask, start, bias, cross=cross, causal=causal, elementwise=elementwise)
    x, kept = self.layers(x, context, kept, None)
    return self.final_norm(x), kept


class EncoderDecoder(nn.Module):
  """A T5-like transformer (Raffel et al. 2020); methods bind at its taps and are unknown to it.

  dtype, remat, unroll, attention: see `Decoder`.
  """

  config: EncoderDecoderConfig
  dtype: Any = jnp.float32
  remat: bool | str = False
  unroll: int = 0
  attention: str = "auto"

  def setup(self):
    c = self.config
    self.embed = Embed(c.vocab_size, c.hidden_size, self.dtype)
    self.encoder = Stack(c, c.encoder_layers, True, self.remat, self.unroll, self.attention)
    self.decoder = Stack(c, c.num_layers, False, self.remat, self.unroll, self.attention)
    if not c.tied_head:
      self.lm_head = Linear(c.vocab_size)

  def __call__(
    self,
    tokens,
    positions=None,
    segments=None,
    cache=None,
    *,
    source_tokens=None,
    source_segments=None,
  ):
    """Logits `[B, S, V]` in float32; with a cache, `(logits, cache)`.

    Args and errors: see `hidden`.
    """
    out = self.hidden(
      tokens,
      positions,
      segments,
      cache,
      source_tokens=source_tokens,
      source_segments=source_segments,
    )
    if cache is None:
      return self.head(out)
    return self.head(out[0]), out[1]

  def encode(self, tokens, segments=None):
    """The encoder's normed output `[B, S', D]`.

    Args:
      tokens: int32 `[B, S']`.
      segments: int32 `[B, S']`: tokens see all tokens of the same number, 0 being padding; by
        default a row is one document.
    """
    segments = jnp.ones_like(tokens) if segments is None else segments
    return self.encoder(self.embed(tokens), masks.same(segments, segments))[0]

  def hidden(
    self,
    tokens,
    positions=None,
    segments=None,
    cache=None,
    *,
    source_tokens=None,
    source_segments=None,
  ):
    """The decoder's normed output `[B, S, D]`; with a cache, `(output, cache)`.

    Args:
      tokens: int32 `[B, S]`, of a document the `start_id` first.
      positions: int32 `[B, S]`, with a cache only, by default from `cache.used`; -1 marks a
        padding token, which no one will see. Rows go by their order.
      segments: int32 `[B, S]`: tokens see earlier tokens of the same number, and the source's
        tokens of that number, 0 being padding. Not used with a cache.
      cache: a `CrossCache` with at least S free slots.
      source_tokens, source_segments: int32 `[B, S']`, see `encode`. With a cache they are for its
        first call, which keeps what the others need of them; there all segments but 0 are one.

    Raises:
      ValueError: there is no source, or segments come with a cache.
    """
    if source_tokens is None and self.is_initializing():
      source_tokens = tokens
    if source_tokens is None and cache is None:
      raise ValueError("an encoder-decoder needs source_tokens, or a cache that has read them")
    if cache is not None and segments is not None:
      raise ValueError("segments are for whole rows; with a cache mark padding by position -1")
    x = self.embed(tokens)
    encoded = None
    if source_tokens is not None:
      if source_segments is None:
        source_segments = jnp.ones_like(source_tokens)
      encoded = self.encode(source_tokens, source_segments)
    if cache is None:
      segments = jnp.ones_like(tokens) if segments is None else segments
      cross = Context(None, masks.same(segments, source_segments), source=encoded)
      return self.decoder(x, masks.causal(segments), cross)[0]
    if positions is None:
      positions = jnp.broadcast_to(cache.used + jnp.arange(tokens.shape[1]), tokens.shape)
    slots = jax.lax.dynamic_update_slice_in_dim(cache.positions, positions, cache.used, axis=1)
    source = cache.source if encoded is None else source_segments > 0
    seen = jnp.broadcast_to(source[:, None], (*tokens.shape, source.shape[1]))
    cross = Context(None, seen, None if encoded is None else 0, source=encoded)
    x, (own, other) = self.decoder(
      x,
      masks.cached(positions, slots),
      cross,
      ((cache.layers, cache.cross), cache.used),
      (positions, slots),
    )
    other = cache.cross if encoded is None else other
    return x, CrossCache(own, slots, cache.used + tokens.shape[1], other, source)

  @property
  def head_names(self) -> tuple[str, ...]:
    """The top-level names of the variables that `head` reads."""
    return ("embed",) if self.config.tied_head else ("lm_head",)

  def head(self, hidden):
    """`[..., D]` -> float32 logits `[..., V]`."""
    if self.config.head_scale is not None:
      hidden = hidden * jnp.asarray(self.config.head_scale, hidden.dtype)
    if self.config.tied_head:
      return self.embed.attend(hidden)
    return self.lm_head(hidden).astype(jnp.float32)

  def init_cache(
    self, batch: int, slots: int, dtype: Any = None, *, source_slots: int
  ) -> CrossCache:
    """An empty cache of `slots` tokens a row and `source_slots` of their sources.

    dtype: by default that of activations, and on a CPU float32, see `models.unrolled`.
    """
    c = self.config
    dtype = dtype or (jnp.float32 if jax.default_backend() == "cpu" else self.dtype)

    rows = (c.num_layers, batch, c.num_kv_heads)
    return CrossCache(
      Slots.empty(rows, c.head_size, slots, dtype),
      jnp.full((batch, slots), -1, jnp.int32),
      jnp.zeros((), jnp.int32),
      Slots.empty(rows, c.head_size, source_slots, dtype),
      jnp.zeros((batch, source_slots), bool),
    )
