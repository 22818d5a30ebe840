"""A model with an array a layer, for loops that run it many times on a CPU.

A model's weights are stacks `[L, ...]`. To slice a layer out of them inside a compiled program
is to copy it: of all weights, each step of training and each token of generation. Here layers
have their own arrays, which such programs read where they are, and their own caches, which they
update in place.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from research.core import tree
from research.core.dot import Transposed
from research.core.matrix import is_matrix
from research.models.cache import Cache
from research.models.decoder import Decoder
from research.models.encoder import Encoder
from research.models.straight import Layers, is_layers
from research.nn.incremental import Slots
from research.quant.mixed import is_mixed


class Unrolled(Decoder):
  """A `Decoder` of `Layers`, whose cache is in place for each of them, too.

  The cache's `layers` is a tuple with the `Slots` of each layer, by default float32: to write one
  slot of a bfloat16 array, CPUs convert all of it there and back.
  """

  def init_cache(self, batch: int, slots: int, dtype: Any = None) -> Cache:
    """See `Decoder.init_cache`."""
    cache: Any = super().init_cache(batch, slots, dtype or jnp.float32)
    stacks = cache.layers
    each = zip(jnp.unstack(stacks.keys), jnp.unstack(stacks.values), strict=True)
    return cache.replace(layers=tuple(Slots(*pair) for pair in each))


def unroll(model: Decoder, variables: Any) -> tuple[Unrolled, Any]:
  """For generation: the same model, and its variables with kernels as copies in `Layers`.

  bfloat16 kernels are held transposed, which is faster for few rows.
  """
  straight = Unrolled(model.config, model.dtype, model.remat, attention=model.attention)
  return straight, {
    name: tree.map_with_path(
      lambda path, leaf: _split(path, leaf, _turned), collection, is_leaf=is_mixed
    )
    for name, collection in variables.items()
  }


def can_unstack(model: Any) -> bool:
  """Whether this kind of model takes what `unstack` gives."""
  return isinstance(model, (Decoder, Encoder))


def unstack(variables: Any) -> Any:
  """For training: `variables` with `Layers` in place of stacks of params; a `Mixed` is no stack."""
  split = tree.map_with_path(
    lambda path, leaf: leaf if is_mixed(leaf) else _split(path, leaf, _same),
    variables["params"],
    is_leaf=is_mixed,
  )
  return {**variables, "params": split}


def restack(variables: Any) -> Any:
  """The inverse of `unstack`; other collections than those of a model stay."""
  stacks = jax.tree.map(
    lambda leaf: jnp.stack(leaf.each) if is_layers(leaf) else leaf,
    variables["params"],
    is_leaf=is_layers,
  )
  return {**variables, "params": stacks}


def _split(path: str, leaf: Any, form: Callable[[str, jax.Array], Any]) -> Any:
  if is_mixed(leaf):
    each = (part if is_matrix(part) else form(path, part) for part in leaf.each)
    return Layers(tuple(each))
  if not path.startswith("layers/"):
    return form(path, leaf)
  return Layers(tuple(form(path, _layer(leaf, i)) for i in range(leaf.shape[0])))


def _same(path: str, leaf: jax.Array) -> jax.Array:
  del path
  return leaf


def _turned(path: str, leaf: jax.Array) -> jax.Array | Transposed:
  flip = path.endswith("/kernel") and leaf.ndim == 2 and leaf.dtype == jnp.bfloat16
  return Transposed(_transpose(leaf)) if flip else leaf


# Programs of a shape, and not one of everything, which would take seconds to compile.
@jax.jit
def _layer(stack: jax.Array, i: jax.Array) -> jax.Array:
  return jax.lax.dynamic_index_in_dim(stack, i, keepdims=False)


@jax.jit
def _transpose(kernel: jax.Array) -> jax.Array:
  return kernel.T
