"""Trainable tokens: some rows of the table of tokens, as `peft` has them.

n tokens, B batch, S sequence, D model, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core.matrix import rows
from research.core.products import matmul
from research.peft.adapter import Adapter

SITE = "embed/embedding"


@struct.dataclass
class TrainableTokens(Adapter):
  """`rows` in place of the table's rows `ids`, where tokens are looked up and in a head that shares
  the table.
  """

  rows: jax.Array  # [n, D]
  ids: tuple[int, ...] = struct.field(pytree_node=False)

  def __call__(self, value, *, table, ids=None, x=None, **_):
    """What the table makes, as these rows would have made it.

    Args:
      value: `[B, S, D]` looked up for `ids [B, S]`; or logits `[..., V]` of `x [..., D]`.
      table: `[V, D]`.
    """
    mine = jnp.asarray(self.ids)
    if ids is None:
      # As a difference, so that rows that have not been trained change no bit.
      change = (self.rows - rows(table, mine).astype(jnp.float32)).astype(x.dtype)
      return value.at[..., mine].add(matmul(x, change, (x.ndim - 1, 1)))
    which = ids[..., None] == mine  # [B, S, n]
    # A product, since its derivative is one, too; that of a lookup scatters every token.
    own = matmul(which.astype(jnp.float32), self.rows, (ids.ndim, 0))
    return jnp.where(which.any(-1, keepdims=True), own.astype(value.dtype), value)

  def merge(self, kernel):
    """The table with these rows in it, in its own type."""
    return kernel.at[jnp.asarray(self.ids)].set(self.rows.astype(kernel.dtype))


def sites(params: Mapping[str, Any]) -> list[str]:
  """Where tokens of `params` are embedded."""
  return [SITE] if SITE in params else []


def init(
  path: str,
  params: Mapping[str, Any],
  rng: jax.Array,
  tokenizer: Any,
  *,
  tokens: Sequence[int | str],
) -> dict[str, Adapter]:
  """Rows as they are in the table.

  Args:
    path: `SITE`.
    params: the base's, flat.
    rng: not used.
    tokenizer: reads texts.
    tokens: ids, or texts that are one token each.

  Raises:
    ValueError: there is none, one of them twice, or one that is no token.
  """
  del rng
  table = params[path]
  ids = [_id(token, tokenizer) for token in tokens]
  if not ids or len(set(ids)) < len(ids):
    raise ValueError(f"trainable tokens {tuple(tokens)!r}: they are one or more, each once")
  if not 0 <= min(ids) <= max(ids) < table.shape[0]:
    raise ValueError(f"trainable tokens {tuple(tokens)!r}: the table has 0 to {table.shape[0] - 1}")
  if isinstance(table, jax.ShapeDtypeStruct):
    raise ValueError(f"trainable tokens begin from the numbers of {path!r}, not from its shape")
  return {path: TrainableTokens(rows(table, jnp.asarray(ids)).astype(jnp.float32), tuple(ids))}


def _id(token, tokenizer):
  if not isinstance(token, str):
    return int(token)
  if tokenizer is None:
    raise ValueError(f"the token {token!r} needs the model's tokenizer; give its id")
  read = tokenizer.encode(token, add_special=False)
  if len(read) != 1:
    raise ValueError(f"{token!r} is {len(read)} tokens, {read}; give the ids of those that train")
  return read[0]
