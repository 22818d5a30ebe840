"""The decoder: embeddings, a stack of blocks, a norm and a head.

B batch, S sequence, T cache slots, D model, V vocabulary, L layers, N kv heads, K head size.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from research.core.sharding import constrain
from research.models import straight
from research.models.cache import Cache
from research.models.config import DecoderConfig
from research.nn import bias as biases
from research.nn import mask as masks
from research.nn.block import Context, stack
from research.nn.embed import Embed
from research.nn.incremental import Slots, write
from research.nn.linear import Linear
from research.nn.norm import Norm
from research.nn.positions import rotation, sinusoidal
from research.nn.tap import tap


class Decoder(nn.Module):
  """A decoder-only transformer; methods bind at its taps and are unknown to it.

  dtype: the type of activations; products accumulate in float32.
  remat, unroll, attention: see `research.nn.block.stack`.
  """

  config: DecoderConfig
  dtype: Any = jnp.float32
  remat: bool | str = False
  unroll: int = 0
  attention: str = "auto"

  def setup(self):
    c = self.config
    self.embed = Embed(c.vocab_size, c.hidden_size, self.dtype)
    if c.rope is None and c.positions == "learned":
      self.position_embed = Embed(c.max_positions, c.hidden_size, self.dtype, name="positions")
    self.layers = straight.stack(self) or stack(
      c, c.num_layers, remat=self.remat, unroll=self.unroll, attention=self.attention
    )
    self.final_norm = Norm(c.norm, c.norm_eps)
    if c.head == "score":
      self.score = Linear(1)
    elif not c.tied_head:
      self.lm_head = Linear(c.vocab_size)

  def __call__(self, tokens, positions=None, segments=None, cache=None):
    """Logits `[B, S, V]` in float32; with a cache, `(logits, cache)`.

    Args and errors: see `hidden`.
    """
    out = self.hidden(tokens, positions, segments, cache)
    if cache is None:
      return self.head(out)
    return self.head(out[0]), out[1]

  def hidden(self, tokens, positions=None, segments=None, cache=None, prefix=None):
    """The last layer's normed output `[B, S, D]`; with a cache, `(output, cache)`.

    Args:
      tokens: int32 `[B, S]`.
      positions: int32 `[B, S]`, by default 0, 1, ... in each row (from `cache.used` with
        a cache). With a cache, position -1 marks a padding token, which no one will see.
      segments: int32 `[B, S]`: tokens see earlier tokens of the same number, 0 being
        padding; by default a row is one document. Not used with a cache.
      cache: a `Cache` with at least S free slots.
      prefix: int32 `[B, S]`: how many first tokens of a token's document see each other both
        ways; by default none. Not used with a cache.
    """
    x, context, kinds, keys = self.enter(tokens, positions, segments, cache, prefix)
    x, layers = self.layers(x, context, None if cache is None else cache.layers, kinds)
    if cache is None:
      return self.final_norm(x)
    return self.final_norm(x), Cache(layers, keys, cache.used + tokens.shape[1])

  def enter(self, tokens, positions=None, segments=None, cache=None, prefix=None):
    """What the layers are given: `(x [B, S, D], context, kinds)`, see `research.nn.block.stack`.

    And the positions of the keys that they see, `[B, T]`. Args and errors: see `hidden`.
    """
    if cache is not None and segments is not None:
      raise ValueError("segments are for whole rows; with a cache mark padding by position -1")
    if cache is not None and prefix is not None:
      raise ValueError("a prefix is for whole rows; a cache's tokens see earlier ones only")
    start = 0 if cache is None else cache.used
    if positions is None:
      first = jnp.reshape(start, (-1, 1))
      positions = jnp.broadcast_to(first + jnp.arange(tokens.shape[1]), tokens.shape)
    known = None if prefix is None else positions < prefix
    positions = tap(self, "offset", positions)
    c = self.config
    x = self.embed(tokens)
    if c.embedding_scale is not None:
      x = x * jnp.asarray(c.embedding_scale, x.dtype)
    if c.rope is None and c.positions == "learned":
      x = x + self.position_embed(jnp.maximum(positions, 0))
    elif c.positions == "sinusoidal":
      x = x + sinusoidal(jnp.maximum(positions, 0), c.hidden_size).astype(x.dtype)
    if cache is None:
      segments = jnp.ones_like(tokens) if segments is None else segments
      keys, visible, start = positions, masks.causal(segments, known), None
      same = segments[:, :, None] == segments[:, None, :]
      lengths = 1 + jnp.max(jnp.where(same, positions[:, None, :], 0), axis=-1)
    else:
      keys = write(cache.positions, positions, start, axis=1)
      visible = masks.cached(positions, keys)
      lengths = 1 + jnp.max(positions, axis=1, keepdims=True)
    bias = None
    if c.positions == "alibi":
      slopes = biases.alibi(c.num_heads)
      if cache is None:
        bias = biases.in_rows(slopes, *visible.shape[1:])
      else:
        bias = biases.in_cache(slopes, positions, keys)
    windows = tuple(dict.fromkeys(c.windows)) or (0,)
    contexts = tuple(
      Context(
        None
        if c.rope is None
        else rotation(c.rope_within(window), positions, c.head_size, lengths),
        masks.within(visible, positions, keys, window),
        start,
        bias,
        # Layers of one kind, that see earlier tokens of their document and nothing else.
        segments=segments if cache is None and prefix is None and len(windows) == 1 else None,
        window=window if len(windows) == 1 else 0,
        causal=cache is None and prefix is None,
      )
      for window in windows
    )
    if len(contexts) == 1:
      return x, contexts[0], None, keys
    return x, contexts, np.array([windows.index(w) for w in c.windows], np.int32), keys

  @property
  def head_names(self) -> tuple[str, ...]:
    """The top-level names of the variables that `head` reads."""
    if self.config.head == "score":
      return ("score",)
    return ("embed",) if self.config.tied_head else ("lm_head",)

  def head(self, hidden):
    """`[..., D]` -> float32 logits `[..., V]`; of a score `[..., 1]`."""
    if hidden.ndim == 3:
      hidden = constrain(hidden, "batch", "sequence", None)
    if self.config.head == "score":
      return self.score(hidden).astype(jnp.float32)
    if self.config.tied_head:
      logits = self.embed.attend(hidden)
    else:
      logits = self.lm_head(hidden).astype(jnp.float32)
    if logits.ndim == 3:
      logits = constrain(logits, "batch", "sequence", "vocab")
    cap = self.config.logit_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)

  def init_cache(self, batch: int, slots: int, dtype: Any = None) -> Cache:
    """An empty cache of `slots` tokens a row."""
    c = self.config
    rows = (c.num_layers, batch, c.num_kv_heads)
    return Cache(
      Slots.empty(rows, c.head_size, slots, dtype or self.dtype),
      jnp.full((batch, slots), -1, jnp.int32),
      jnp.zeros((), jnp.int32),
    )
