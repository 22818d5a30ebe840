"""What is added to a score for how far its key is from its query: ALiBi, and T5's buckets.

B batch, S queries, T keys, H heads, R buckets.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# Distances (key minus query) int32 `[...]` -> what each head adds, float32 `[H, ...]`.
OfDistance = Callable[[jax.Array], jax.Array]


def in_rows(of_distance: OfDistance, queries: int, keys: int) -> jax.Array:
  """Of every query and key by their places in a row: float32 `[1, H, S, T]`.

  Documents are unbroken, so that places differ as positions do; one bias serves all rows.
  """
  distances = jnp.arange(1 - queries, keys)  # [S + T - 1]
  values = of_distance(distances)
  # Row i is the same values, i places further on. Read in lines one shorter than it is, a
  # repetition of them moves on by one a line; its derivative is a sum, where that of an index
  # would be S * T additions, one after the other.
  values = jnp.pad(values, ((0, 0), (0, 1)))
  lines = jnp.broadcast_to(values[:, None], (values.shape[0], queries, values.shape[1]))
  lines = lines.reshape(values.shape[0], -1)[:, : queries * distances.size]
  lines = lines.reshape(values.shape[0], queries, distances.size)
  return lines[None, :, :, queries - 1 :]


def in_cache(of_distance: OfDistance, queries: jax.Array, keys: jax.Array) -> jax.Array:
  """By positions, `[B, S]` and `[B, T]`: float32 `[B, H, S, T]`."""
  return jnp.moveaxis(of_distance(keys[:, None, :] - queries[:, :, None]), 0, 1)


def alibi_slopes(num_heads: int) -> np.ndarray:
  """ALiBi's slope of each head, float32 `[H]` (Press et al. 2022, arXiv:2108.12409, section 3).

  `2^(-8/n), 2^(-16/n), ...` for a power of two n. Other numbers of heads take those of the power
  of two below them, and then every other one of the power above, as the authors' code does.
  """
  below = 1 << (num_heads.bit_length() - 1)
  slopes = 2.0 ** (-8.0 / below * np.arange(1, below + 1))
  more = 2.0 ** (-4.0 / below * np.arange(1, 2 * below, 2))
  return np.concatenate([slopes, more[: num_heads - below]]).astype(np.float32)


def alibi(num_heads: int) -> OfDistance:
  """`-slope * |distance|` (Press et al. 2022)."""
  slopes = alibi_slopes(num_heads)

  def of_distance(distances):
    return -jnp.abs(distances) * slopes.reshape(-1, *[1] * distances.ndim)

  return of_distance


def relative_buckets(
  distances: jax.Array, *, bidirectional: bool, buckets: int, longest: int
) -> jax.Array:
  """T5's bucket of each distance, int32 (Raffel et al. 2020, arXiv:1910.10683, section 2.1).

  Half of the buckets are of one distance each, the others grow as its logarithm does up to
  `longest`; all beyond share the last one. If bidirectional, half are of keys after the query;
  otherwise those keys count as the query itself.
  """
  if bidirectional:
    buckets //= 2
  exact = buckets // 2
  lengths = np.maximum(np.arange(longest + 1), 1).astype(np.float32)
  grown = np.log(lengths / np.float32(exact)) / np.float32(math.log(longest / exact))
  large = exact + (grown * np.float32(buckets - exact)).astype(np.int32)
  table = np.where(lengths < exact, np.arange(longest + 1), np.minimum(large, buckets - 1))
  back = jnp.abs(distances) if bidirectional else jnp.maximum(-distances, 0)
  found = jnp.take(jnp.asarray(table, jnp.int32), jnp.minimum(back, longest))
  return found + buckets * (distances > 0) if bidirectional else found


class RelativeBias(nn.Module):
  """A learned number for each bucket and head, `[R, H]`.

  bidirectional, buckets, longest: see `relative_buckets`.
  """

  num_heads: int
  bidirectional: bool
  buckets: int
  longest: int

  @nn.compact
  def __call__(self, distances: jax.Array) -> jax.Array:
    """int32 `[...]` -> float32 `[H, ...]`."""
    table = self.param("embedding", nn.initializers.normal(0.02), (self.buckets, self.num_heads))
    found = relative_buckets(
      distances, bidirectional=self.bidirectional, buckets=self.buckets, longest=self.longest
    )
    return jnp.take(table.astype(jnp.float32).T, found, axis=1)
