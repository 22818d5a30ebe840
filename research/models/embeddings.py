"""Texts as vectors: the mean of an encoder's hidden states (Reimers & Gurevych 2019, SBERT).

B batch, S sequence, D model.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.data import packing
from research.data.tokenizer import Tokenizer
from research.models.encoder import Encoder

_BUCKETS = (16, 32, 64, 128)  # tokens that a batch is padded to, besides the length


def mean_pool(hidden: jax.Array, mask: jax.Array) -> jax.Array:
  """The mean of `hidden [B, S, D]` where `mask [B, S]` -> float32 `[B, D]`; of nothing it is 0."""
  mask = mask.astype(jnp.float32)
  total = jnp.einsum("bs,bsd->bd", mask, hidden.astype(jnp.float32), precision="highest")
  return total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1.0)


def normalize(x: jax.Array) -> jax.Array:
  """`x / |x|` over the last axis; 0 stays 0, in the gradient too."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def embed(
  model: Encoder,
  variables: Any,
  tokenizer: Tokenizer,
  texts: Sequence[str],
  *,
  batch_size: int = 32,
  length: int = 256,
  normalized: bool = True,
) -> np.ndarray:
  """The mean of each text's hidden states, of unit length if `normalized`.

  Args:
    variables: `{"params": ...}`, maybe with `"adapters"`.
    texts: longer ones are cut to their first tokens, the closing ones kept.
    batch_size: texts at a time.
    length: the most tokens of a text, no more than the model's positions.

  Returns:
    float32 `[len(texts), D]`, in the order of `texts`.

  Raises:
    ValueError: the length is more than the model's positions.
  """
  ids = encoded(model, tokenizer, texts, length)
  out = np.zeros((len(ids), model.config.hidden_size), np.float32)
  for chosen, tokens, segments in batches(ids, batch_size, length):
    found = _embed(model, variables, tokens, segments, normalized)
    out[chosen] = np.asarray(found)[: len(chosen)]
  return out


def encoded(
  model: Encoder, tokenizer: Tokenizer, texts: Sequence[str], length: int
) -> list[list[int]]:
  """The tokens of each text, its first and its closing ones where there are more than `length`.

  Raises:
    ValueError: as `require_length`.
  """
  require_length(model, length)
  return [_cut(tokens, length) for tokens in tokenizer.encode_batch(list(texts))]


def require_length(model: Encoder, length: int) -> None:
  """Raises ValueError if texts of `length` tokens are more than the model's positions, or none."""
  if not 2 <= length <= model.config.max_positions:
    raise ValueError(
      f"length {length} is not within 2 and the model's {model.config.max_positions} positions"
    )


def batches(
  ids: Sequence[Sequence[int]], batch_size: int, length: int
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
  """Texts of like length together, the longest first: which they are, tokens and segments `[B, S]`.

  Padded to one of few lengths, and the last batch with empty rows.
  """
  order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
  buckets = sorted({*(b for b in _BUCKETS if b < length), length})
  for at in range(0, len(ids), batch_size):
    chosen = order[at : at + batch_size]
    shape = (batch_size, packing.bucket(len(ids[chosen[0]]), buckets))
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, i in enumerate(chosen):
      tokens[row, : len(ids[i])] = ids[i]
      segments[row, : len(ids[i])] = 1
    yield chosen, tokens, segments


def _cut(tokens: list[int], length: int) -> list[int]:
  return tokens if len(tokens) <= length else [*tokens[: length - 1], tokens[-1]]


@partial(jax.jit, static_argnums=(0, 4))
def _embed(model, variables, tokens, segments, normalized):
  hidden = model.apply(variables, tokens, segments=segments, method="hidden")
  means = mean_pool(hidden, segments > 0)
  return normalize(means) if normalized else means
