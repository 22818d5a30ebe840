"""A decoder with an array a layer, for loops that run it many times on a CPU.

A decoder's weights are stacks `[L, ...]`. To slice a layer out of them inside a compiled loop
of tokens is to copy it: of all weights, each token. Here every layer has its own arrays, which
such a loop reads where they are, and its own cache, which it updates in place.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research.core import tree
from research.models.config import DecoderConfig
from research.models.decoder import Cache, Decoder
from research.nn.block import Block
from research.nn.dot import Transposed


class Unrolled(Decoder):
  """A `Decoder` whose `layers` are a tuple of trees, a tree a layer; `unroll` makes both.

  Its cache's `layers` is a tuple with the `(keys, values)` of each layer, by default float32: to
  write one slot of a bfloat16 array, CPUs convert all of it there and back.
  """

  def _stack(self):
    return self._run

  def _run(self, x, context, caches, kinds):
    stacks = [(name, tree["layers"]) for name, tree in self.variables.items() if "layers" in tree]
    one = caches is not None and x.shape[1] == 1
    elementwise = one and caches[0][0].dtype == jnp.float32
    shared = kinds is None
    contexts = [c.replace(elementwise=elementwise) for c in ((context,) if shared else context)]
    filled = []
    for i in range(self.config.num_layers):
      variables = {name: layers[i] for name, layers in stacks}
      context = contexts[0 if shared else kinds[i]]
      x, cache = _block(self.config, variables, x, context, caches and caches[i])
      filled.append(cache)
    return x, tuple(filled)

  def init_cache(self, batch: int, slots: int, dtype: Any = None) -> Cache:
    """See `Decoder.init_cache`."""
    cache: Any = super().init_cache(batch, slots, dtype or jnp.float32)
    keys, values = cache.layers
    return cache.replace(layers=tuple(zip(jnp.unstack(keys), jnp.unstack(values), strict=True)))


# Compiled on its own, so that it is traced once for all layers; the compiler inlines it.
@partial(jax.jit, static_argnums=0)
def _block(config: DecoderConfig, variables, x, context, cache):
  return Block(config, parent=None).apply(variables, x, context, cache)


def unroll(model: Decoder, variables: Any) -> tuple[Unrolled, Any]:
  """The same model with an array a layer, and its variables, of which kernels are copies."""
  return Unrolled(model.config, model.dtype), _split(variables, model.config.num_layers)


@partial(jax.jit, static_argnums=1)
def _split(variables: Any, count: int) -> Any:
  """Collections with `count` trees of layers in place of each tree of stacks."""

  def form(path, leaf):
    # Which is faster differs: a float32 vector times a kernel wants it as it is.
    flip = path.endswith("/kernel") and leaf.dtype == jnp.bfloat16
    return Transposed(leaf.T) if flip else leaf

  def split(collection):
    parts = dict(collection)
    stacks = parts.pop("layers", None)
    parts = tree.map_with_path(form, parts)
    if stacks is not None:
      parts["layers"] = tuple(
        tree.map_with_path(lambda path, leaf, i=i: form(path, leaf[i]), stacks)
        for i in range(count)
      )
    return parts

  return {name: split(collection) for name, collection in variables.items()}
