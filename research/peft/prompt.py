"""Prompt tuning: trained embeddings of virtual tokens in front of every document.

Lester et al. 2021, arXiv:2104.08691, section 2. Virtual tokens have the ids -1 to -T; whoever lays
documents out (`research.data`, `research.generation`) puts them in front.

T virtual tokens, D model, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core import tree
from research.core.products import matmul
from research.peft.adapter import Adapter
from research.peft.places import require_decoder

SITE = "embed/prompt"
EMBEDDING = "embed/embedding"
INITS = ("random", "vocabulary", "text")


@struct.dataclass
class Prompt(Adapter):
  """Embeddings of the ids -1, -2, ..."""

  embedding: jax.Array  # [T, D]

  def __call__(self, value, *, ids, **_):
    """`value [B, S, D]` of `ids [B, S]` -> with these embeddings where ids are its own."""
    # A product, since its derivative is one, too; that of a lookup scatters every token.
    which = jax.nn.one_hot(-1 - ids, self.virtual_tokens, dtype=jnp.float32)  # [B, S, T]
    own = matmul(which, self.embedding.astype(jnp.float32), (ids.ndim, 0))
    mine = (ids < 0) & (ids >= -self.virtual_tokens)
    return jnp.where(mine[..., None], own.astype(value.dtype), value)

  @property
  def virtual_tokens(self) -> int:
    return self.embedding.shape[0]


def sites(params: Mapping[str, Any]) -> list[str]:
  """Where tokens of `params` are embedded.

  Raises:
    ValueError: the model is no decoder.
  """
  require_decoder(params, "a prompt of virtual tokens")
  return [SITE]


def begun(
  init: str, text: str, tokens: int, vocabulary: int, rng: jax.Array, tokenizer: Any
) -> jax.Array | None:
  """The ids `[T]` of the tokens that virtual ones begin as, None for random numbers.

  Args:
    init, text, tokens, rng, tokenizer: see `init`.
    vocabulary: V.

  Raises:
    ValueError: T is below 1, there is a text for another `init` or none for this one, or nothing
      that could read it.
  """
  if tokens < 1:
    raise ValueError(f"there is 1 virtual token or more, not {tokens}")
  if init not in INITS:
    raise ValueError(f"init {init!r} is none of {', '.join(INITS)}{tree.nearest(init, INITS)}")
  if bool(text) != (init == "text"):
    raise ValueError(f"init {init!r} with the text {text!r}: a text goes with init 'text'")
  if init == "random":
    return None
  if init == "vocabulary":
    return jax.random.randint(rng, (tokens,), 0, vocabulary)
  if tokenizer is None:
    raise ValueError("what begins with a text needs the model's tokenizer")
  return jnp.resize(jnp.asarray(tokenizer.encode(text), jnp.int32), (tokens,))


def init(
  path: str,
  params: Mapping[str, Any],
  rng: jax.Array,
  tokenizer: Any,
  *,
  tokens: int = 20,
  init: str = "random",
  text: str = "",
) -> dict[str, Adapter]:
  """New virtual tokens.

  Args:
    path: `SITE`.
    params: the base's, flat.
    rng: key of the numbers.
    tokenizer: reads the text.
    tokens: T.
    init: "random" numbers, normally distributed as PEFT's; the embeddings of random tokens of the
      "vocabulary"; or those of a "text".
    text: cut to T tokens, or said again until there are as many.

  Raises:
    ValueError: see `begun`.
  """
  table = params[EMBEDDING]
  ids = begun(init, text, tokens, table.shape[0], rng, tokenizer)
  if ids is None:
    return {path: Prompt(jax.random.normal(rng, (tokens, table.shape[1]), jnp.float32))}
  if not hasattr(table, "__array__"):
    raise ValueError(f"a prompt of init {init!r} needs the embeddings, not their shapes alone")
  return {path: Prompt(jnp.asarray(table)[ids].astype(jnp.float32))}
