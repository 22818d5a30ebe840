"""A model with an array a layer, for loops that run it many times on a CPU.

A model's weights are stacks `[L, ...]`. To slice a layer out of them inside a compiled program
is to copy it: of all weights, each step of training and each token of generation. Here layers
have their own arrays, which such programs read where they are, and their own caches, which they
update in place.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core import tree
from research.core.dot import Transposed
from research.models.cache import Cache
from research.models.config import StackConfig
from research.models.decoder import Decoder
from research.models.encoder import Encoder
from research.nn import remat
from research.nn.block import Block
from research.nn.incremental import Slots
from research.nn.moe import ROUTING
from research.nn.tap import OBSERVERS


@struct.dataclass
class Layers:
  """A leaf of stacks, `[L, ...]`, as what each layer has of it."""

  each: tuple[Any, ...]


class Unrolled(Decoder):
  """A `Decoder` that takes `Layers` where stacks are; without them it slices the stacks.

  Its cache's `layers` is a tuple with the `Slots` of each layer, by default float32: to write one
  slot of a bfloat16 array, CPUs convert all of it there and back.
  """

  def _stack(self):
    return partial(_run, self)

  def init_cache(self, batch: int, slots: int, dtype: Any = None) -> Cache:
    """See `Decoder.init_cache`."""
    cache: Any = super().init_cache(batch, slots, dtype or jnp.float32)
    stacks = cache.layers
    each = zip(jnp.unstack(stacks.keys), jnp.unstack(stacks.values), strict=True)
    return cache.replace(layers=tuple(Slots(*pair) for pair in each))


class UnrolledEncoder(Encoder):
  """An `Encoder` that takes `Layers` where stacks are; without them it slices the stacks."""

  def _stack(self):
    return partial(_run, self)


_UNROLLED: dict[type[Any], type[Any]] = {Decoder: Unrolled, Encoder: UnrolledEncoder}


def _run(model, x, context, caches, kinds):
  """The layers of `model`, as `research.nn.block.stack` runs them."""
  stacks = {name: part["layers"] for name, part in model.variables.items() if "layers" in part}
  leaves, structure = jax.tree.flatten(stacks, is_leaf=_is_layers)
  layers = zip(*(_each(leaf) for leaf in leaves), strict=True)
  one = caches is not None and x.shape[1] == 1
  elementwise = one and caches[0].dtype == jnp.float32
  contexts = [
    c.replace(elementwise=elementwise) for c in ((context,) if kinds is None else context)
  ]
  dropout = model.make_rng("dropout") if model.has_rng("dropout") else None
  block = remat.checkpointed(jax.checkpoint, _block, model.remat, static_argnums=(0, 1, 2))
  told = tuple(name for name in (ROUTING, OBSERVERS) if model.is_mutable_collection(name))
  filled, telling = [], []
  for i, own in enumerate(layers):
    rngs = None if dropout is None else {"dropout": jax.random.fold_in(dropout, i)}
    cache = None if caches is None else caches[i]
    context = contexts[0 if kinds is None else kinds[i]]
    own = jax.tree.unflatten(structure, own)
    how = (model.config, model.attention, told)
    (x, cache), told_here = block(*how, own, x, context, cache, rngs)
    filled.append(cache)
    telling.append(told_here)
  stacks = jax.tree.map(lambda *layers: jnp.stack(layers), *telling)
  for name in told:
    if name in stacks:
      model.put_variable(name, "layers", stacks[name])
  return x, tuple(filled)


# Compiled on its own, so that it is traced once for all layers; the compiler inlines it.
@partial(jax.jit, static_argnums=(0, 1, 2))
def _block(
  config: StackConfig, attention: str, told: tuple[str, ...], variables, x, context, cache, rngs
):
  """What the block returns, and the collections of what is to be `told`."""
  block = Block(config, attention, parent=None)
  return block.apply(variables, x, context, cache, rngs=rngs, mutable=list(told))


def unroll(model: Decoder, variables: Any) -> tuple[Unrolled, Any]:
  """For generation: the same model, and its variables with kernels as copies in `Layers`.

  bfloat16 kernels are held transposed, which is faster for few rows.
  """
  return _straight(Unrolled, model), {
    name: tree.map_with_path(lambda path, leaf: _split(path, leaf, _turned), collection)
    for name, collection in variables.items()
  }


def _straight(kind: type[Any], model: Any) -> Any:
  return kind(model.config, model.dtype, model.remat, attention=model.attention)


def can_unstack(model: Any) -> bool:
  """Whether `unstack` knows this kind of model."""
  return type(model) in _UNROLLED


def unstack(model: Any, variables: Any) -> tuple[Any, Any]:
  """For training: the same model, and `variables` with `Layers` in place of stacks of params."""
  return _straight(_UNROLLED[type(model)], model), {
    name: tree.map_with_path(lambda path, leaf: _split(path, leaf, _same), collection)
    if name == "params"
    else collection
    for name, collection in variables.items()
  }


def restack(variables: Any) -> Any:
  """The inverse of `unstack` on variables; other collections than those of a model stay."""
  stacks = jax.tree.map(
    lambda leaf: jnp.stack(leaf.each) if _is_layers(leaf) else leaf,
    variables["params"],
    is_leaf=_is_layers,
  )
  return {**variables, "params": stacks}


def fitting(model: Any, variables: Any) -> Any:
  """The model in the form that `variables` have: as `unstack` made it, or for stacks."""
  leaves = jax.tree.leaves(variables, is_leaf=_is_layers)
  if can_unstack(model) and any(map(_is_layers, leaves)):
    return _straight(_UNROLLED[type(model)], model)
  return model


def _is_layers(node: Any) -> bool:
  return isinstance(node, Layers)


def _each(leaf: jax.Array | Layers) -> tuple[Any, ...]:
  if isinstance(leaf, Layers):
    return leaf.each
  # Not by indices: the derivative of `split` is one concatenation.
  parts = jax.lax.split(leaf, (1,) * leaf.shape[0])
  return tuple(part.reshape(leaf.shape[1:]) for part in parts)


def _split(path: str, leaf: jax.Array, form: Callable[[str, jax.Array], Any]) -> Any:
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
