"""A decoder with an array a layer, for loops that run it many times on a CPU.

A decoder's weights are stacks `[L, ...]`. To slice a layer out of them inside a compiled loop
of tokens is to copy it: of all weights, each token. Here every layer has its own arrays, which
such a loop reads where they are, and its own cache, which it updates in place.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research.models.config import DecoderConfig
from research.models.decoder import Cache, Decoder
from research.nn.block import Block


class Unrolled(Decoder):
  """A `Decoder` whose `layers` are a tuple of trees, a tree a layer; `unroll` makes both.

  Its cache's `layers` is a tuple with the `(keys, values)` of each layer.
  """

  def _stack(self):
    return self._run

  def _run(self, x, context, caches):
    stacks = [(name, tree["layers"]) for name, tree in self.variables.items() if "layers" in tree]
    filled = []
    for i in range(self.config.num_layers):
      variables = {name: layers[i] for name, layers in stacks}
      x, cache = _block(self.config, variables, x, context, caches and caches[i])
      filled.append(cache)
    return x, tuple(filled)

  def init_cache(self, batch: int, slots: int, dtype: Any = None) -> Cache:
    """See `Decoder.init_cache`."""
    cache = super().init_cache(batch, slots, dtype)
    keys, values = cache.layers
    return cache.replace(layers=tuple(zip(jnp.unstack(keys), jnp.unstack(values), strict=True)))


# Compiled on its own, so that it is traced once for all layers; the compiler inlines it.
@partial(jax.jit, static_argnums=0)
def _block(config: DecoderConfig, variables, x, context, cache):
  return Block(config, parent=None).apply(variables, x, context, cache)


def unroll(model: Decoder, variables: Any) -> tuple[Unrolled, Any]:
  """The same model with an array a layer, and its variables, of which the layers are copies."""
  stacks = {name: tree["layers"] for name, tree in variables.items() if "layers" in tree}
  split = _split(stacks, model.config.num_layers)
  layered = {name: {**variables[name], "layers": layers} for name, layers in split.items()}
  return Unrolled(model.config, model.dtype), {**variables, **layered}


@partial(jax.jit, static_argnums=1)
def _split(stacks: Any, count: int) -> Any:
  """`count` trees of layers in place of each tree of stacks."""
  return {
    name: tuple(jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count))
    for name, tree in stacks.items()
  }
