"""Prefix tuning: trained keys and values in front of every document, in every layer.

Li and Liang 2021, arXiv:2101.00190, section 4.2; without the network that makes them in training
it is what P-tuning v2 (Liu et al. 2021, arXiv:2110.07602) calls deep prompts.

L layers, T tokens of the prefix, N key/value heads, K head size, E embedding, H hidden size.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core import tree
from research.core.products import matmul
from research.peft import prompt
from research.peft.adapter import Adapter, is_adapter
from research.peft.places import require_decoder

SITE = "layers/attention/kv"
OFFSET = "offset"


@struct.dataclass
class Prefix(Adapter):
  """Keys, as they are after rotation, and values that all queries see.

  ids: of tokens whose keys and values these are still to be, see `prefill`.
  """

  keys: jax.Array  # [L, T, N*K]
  values: jax.Array  # [L, T, N*K]
  ids: jax.Array | None = None  # int32 [T]

  def __call__(self, value, **_):
    """Keys and values `[B, N, S, K]`, mask `[B, Q, S]` and bias -> with T more in front.

    A bias of scores by distance is 0 of them.
    """
    if self.ids is not None:
      raise ValueError("a prefix begins as what the base makes of tokens: call peft.prefill first")
    keys, values, mask, bias = value
    tokens = self.keys.shape[-2]
    if bias is not None:
      bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (tokens, 0)))
    return (
      _in_front(self.keys, keys),
      _in_front(self.values, values),
      jnp.concatenate([jnp.ones((*mask.shape[:-1], tokens), bool), mask], axis=-1),
      bias,
    )


def _in_front(new, own):
  batch, heads, _, size = own.shape
  new = new.reshape(-1, heads, size).swapaxes(0, 1).astype(own.dtype)  # [N, T, K]
  return jnp.concatenate([jnp.broadcast_to(new, (batch, *new.shape)), own], axis=2)


@struct.dataclass
class ProjectedPrefix(Adapter):
  """A prefix that a network of two layers makes of an embedding; what is kept is the prefix.

  The network is one for all layers of the model, so it cannot act within one of them: models take
  what `peft.materialize` makes of it.
  """

  embedding: jax.Array  # [T, E]
  kernel_in: jax.Array  # [E, H]
  bias_in: jax.Array  # [H]
  kernel_out: jax.Array  # [H, L*2*N*K]: layer by layer keys, then values
  bias_out: jax.Array  # [L*2*N*K]
  layers: int = struct.field(pytree_node=False)

  @property
  def by_layer(self) -> bool:
    """See `Adapter.by_layer`."""
    return False

  def materialize(self) -> Prefix:
    """`W_out tanh(W_in e + b_in) + b_out`, in float32."""
    hidden = jnp.tanh(matmul(self.embedding, self.kernel_in, (1, 0)) + self.bias_in)
    return from_flat(matmul(hidden, self.kernel_out, (1, 0)) + self.bias_out, self.layers)


@struct.dataclass
class Offset(Adapter):
  """Documents' positions begin after those of a prefix; -1, which marks padding, stays."""

  tokens: int = struct.field(pytree_node=False)

  def __call__(self, positions, **_):
    return jnp.where(positions < 0, positions, positions + self.tokens)

  @property
  def offset(self) -> int:
    return self.tokens


def sites(params: Mapping[str, Any]) -> list[str]:
  """Where keys and values of `params` are.

  Raises:
    ValueError: the model is no decoder.
  """
  require_decoder(params, "a prefix")
  return [SITE]


def init(
  path: str,
  params: Mapping[str, Any],
  rng: jax.Array,
  tokenizer: Any,
  *,
  tokens: int = 20,
  init: str = "random",
  text: str = "",
  projection: bool = False,
  hidden_size: int = 0,
) -> dict[str, Adapter]:
  """A new prefix, and the positions that follow it.

  Args:
    path: `SITE`.
    params: the base's, flat.
    rng: key of the numbers.
    tokenizer: reads the text.
    tokens: T.
    init: "random" numbers, normally distributed as PEFT's; or, by `prefill`, what the base makes of
      random tokens of the "vocabulary" or of a "text" (section 7.4 of the paper).
    text: cut to T tokens, or said again until there are as many.
    projection: a network of two layers makes the prefix while it trains.
    hidden_size: H of that network, by default the size of all keys of a token.

  Raises:
    ValueError: see `prompt.begun`; or a hidden size is given without a projection, or another init
      than "random" with one.
  """
  ids = prompt.begun(init, text, tokens, params[prompt.EMBEDDING].shape[0], rng, tokenizer)
  if hidden_size < 0:
    raise ValueError(f"hidden_size {hidden_size} is not negative")
  if projection and ids is not None:
    raise ValueError(f"init {init!r} is not for a prefix that a network makes (projection)")
  if hidden_size and not projection:
    raise ValueError(f"hidden_size {hidden_size} is of a projection; set projection=True")
  layers, _, size = params["layers/attention/k_proj/kernel"].shape
  after: dict[str, Adapter] = {OFFSET: Offset(tokens)}
  if not projection:
    keys, values = jax.random.normal(rng, (2, layers, tokens, size), jnp.float32)
    return {path: Prefix(keys, values, ids), **after}
  embedding, *rngs = jax.random.split(rng, 3)
  hidden = hidden_size or size
  first, second = linear(rngs[0], size, hidden), linear(rngs[1], hidden, layers * 2 * size)
  noise = jax.random.normal(embedding, (tokens, size), jnp.float32)
  return {path: ProjectedPrefix(noise, *first, *second, layers), **after}


def prefill(adapters: Any, model: Any, params: Any) -> Any:
  """`adapters` whose prefix, if it begins with tokens, is the base's keys and values of them.

  The model then says what it says after these tokens, until the prefix is trained.

  Args:
    model: a `models.Decoder`. params: its parameters.
  """
  flat = tree.flatten(adapters, is_leaf=is_adapter)
  node = flat.get(SITE)
  if not isinstance(node, Prefix) or node.ids is None:
    return adapters

  def read(params: Any, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    cache = model.init_cache(1, len(ids))
    _, cache = model.apply({"params": params}, ids[None], cache=cache, method="hidden")
    keys, values = cache.layers.keys[:, 0], cache.layers.values[:, 0]  # [L, N, K, T], [L, N, T, K]
    return jnp.moveaxis(keys, 3, 1), jnp.moveaxis(values, 2, 1)

  keys, values = (each.reshape(*each.shape[:2], -1) for each in jax.jit(read)(params, node.ids))
  flat[SITE] = Prefix(keys.astype(jnp.float32), values.astype(jnp.float32))
  return tree.unflatten(flat)


def linear(rng: jax.Array, size: int, out: int) -> tuple[jax.Array, jax.Array]:
  """A random kernel `[in, out]` and bias `[out]`, uniform within `1 / sqrt(in)` as PyTorch's."""
  kernel, bias = jax.random.split(rng)
  bound = 1 / math.sqrt(size)
  return (
    jax.random.uniform(kernel, (size, out), jnp.float32, -bound, bound),
    jax.random.uniform(bias, (out,), jnp.float32, -bound, bound),
  )


def from_flat(flat: jax.Array, layers: int) -> Prefix:
  """`[T, L*2*N*K]`, as PEFT stores a prefix: layer by layer its keys, then its values."""
  split = flat.reshape(flat.shape[0], layers, 2, -1)
  keys, values = jnp.moveaxis(split, 0, 2).swapaxes(0, 1)  # [2, L, T, N*K]
  return Prefix(keys, values)


def to_flat(prefix: Prefix) -> jax.Array:
  """The inverse of `from_flat`."""
  both = jnp.stack([prefix.keys, prefix.values], axis=1)  # [L, 2, T, N*K]
  return jnp.moveaxis(both, 2, 0).reshape(prefix.keys.shape[1], -1)
