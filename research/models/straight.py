"""The layers of a model as straight-line code: each with parameters of its own.

B batch, S sequence, D model, L layers.
"""

from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.models.config import StackConfig
from research.nn import remat
from research.nn.block import Block
from research.nn.moe import ROUTING
from research.nn.tap import OBSERVERS
from research.quant.mixed import is_mixed


@struct.dataclass
class Layers:
  """A leaf of stacks, `[L, ...]`, as what each layer has of it."""

  each: tuple[Any, ...]


def is_layers(node: Any) -> bool:
  """True for `Layers`, for use as `is_leaf`."""
  return isinstance(node, Layers)


def is_split(node: Any) -> bool:
  """True for what has a value a layer and is no stack, which a compiled loop cannot slice."""
  return is_layers(node) or is_mixed(node)


def stack(model: Any) -> Any:
  """A function that runs all layers of a model, if variables that it is given are split; else None.

  It takes and gives what `research.nn.block.stack` does.

  model: bound to its variables, of which some are stacks and some are split.
  """
  parts = [part["layers"] for part in model.variables.values() if "layers" in part]
  if any(map(is_split, jax.tree.leaves(parts, is_leaf=is_split))):
    return partial(_run, model)
  return None


def _run(model, x, context, caches, kinds):
  """The layers of `model`, as `research.nn.block.stack` runs them."""
  stacks = {name: part["layers"] for name, part in model.variables.items() if "layers" in part}
  leaves, structure = jax.tree.flatten(stacks, is_leaf=is_split)
  layers = zip(*(_each(leaf) for leaf in leaves), strict=True)
  stacked = caches is not None and not isinstance(caches, tuple)
  if stacked:
    caches = [jax.tree.map(itemgetter(i), caches) for i in range(model.config.num_layers)]
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
  stacks = jax.tree.map(_stacked, *telling)
  for name in told:
    if name in stacks:
      model.put_variable(name, "layers", stacks[name])
  return x, jax.tree.map(_stacked, *filled) if stacked else tuple(filled)


# Compiled on its own, so that it is traced once for layers of one form; the compiler inlines it.
@partial(jax.jit, static_argnums=(0, 1, 2))
def _block(
  config: StackConfig, attention: str, told: tuple[str, ...], variables, x, context, cache, rngs
):
  """What the block returns, and the collections of what is to be `told`."""
  block = Block(config, attention, parent=None)
  return block.apply(variables, x, context, cache, rngs=rngs, mutable=list(told))


def _stacked(*layers):
  return jnp.stack(layers)


def _each(leaf: Any) -> tuple[Any, ...]:
  if is_split(leaf):
    return leaf.each
  # Not by indices: the derivative of `split` is one concatenation.
  parts = jax.lax.split(leaf, (1,) * leaf.shape[0])
  return tuple(part.reshape(leaf.shape[1:]) for part in parts)
