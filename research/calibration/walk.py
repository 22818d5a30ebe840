"""Through a model a layer at a time: what a layer's projections read once the layers before it are
as they will be.

B batch, S sequence, D model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax

from research.core import matrix, tree
from research.core.moments import Moments
from research.models.decoder import Decoder
from research.nn.block import Block
from research.nn.tap import OBSERVERS
from research.peft.kernel import EXPERTS
from research.quant import mixed
from research.quant.ranges import Magnitudes

Tree = Any


class Walk:
  """Batches on their way through the layers of a decoder.

  number: of the layer that they stand before.
  """

  def __init__(self, model: Any, params: Tree, batches: Iterable[Mapping[str, Any]]):
    """Embeds all batches, which are kept.

    Args:
      model: a decoder.
      params: its parameters; layers are taken from them in order.
      batches: see docs/architecture.md.

    Raises:
      ValueError: it is another kind of model, or there are no batches.
    """
    require_decoder(model)
    self.config = model.config
    self._layers = params["layers"]
    self.number = 0
    outside = {name: part for name, part in params.items() if name != "layers"}
    entered = [_enter(model, outside, dict(batch)) for batch in batches]
    if not entered:
      raise ValueError("calibration has no batches")
    kinds = model.config.windows
    order = tuple(dict.fromkeys(kinds))
    self._kinds = [order.index(window) for window in kinds] if len(order) > 1 else None
    self._on_way = [x for x, _, _ in entered]
    self._around = [(context, weights) for _, context, weights in entered]

  @property
  def done(self) -> bool:
    """Whether all layers are behind."""
    return self.number == self.config.num_layers

  @property
  def hidden(self) -> list[jax.Array]:
    """Of each batch what the layer behind them gave, or the embedding, `[B, S, D]`."""
    return self._on_way

  def branch(self) -> Walk:
    """Another walk from the same place."""
    return copy.copy(self)

  def params(self) -> Tree:
    """The parameters of the layer ahead."""
    return mixed.layer(self._layers, self.number)

  def moments(self, params: Tree) -> dict[str, Moments]:
    """What the kernels of the layer ahead read if its parameters are `params`, padding left out.

    By path within the layer, experts left out.
    """
    return self._watch(params, lambda inputs: Moments.none((), inputs))

  def magnitudes(self, params: Tree) -> dict[str, Magnitudes]:
    """As `moments`, how large the numbers are."""
    return self._watch(params, lambda inputs: Magnitudes.none())

  def _watch(self, params, observer):
    """What observers see, each made for a number of inputs, by path within the layer."""
    kernels = {
      path: kernel
      for path, kernel in matrix.flatten(params).items()
      if path.endswith("/kernel") and EXPERTS not in path
    }
    watched = {path: _first_reader(path, kernels) for path in kernels}
    found = {path: observer(kernels[path].shape[0]) for path in set(watched.values())}
    for x, (context, weights) in zip(self._on_way, self._around, strict=True):
      ready = {path: seen.expecting(weights) for path, seen in found.items()}
      seen = _observe(self.config, params, tree.unflatten(ready), x, self._of_layer(context))
      found = dict(tree.flatten(seen, is_leaf=_is_observer))
    return {path: found[first] for path, first in watched.items()}

  def advance(self, params: Tree) -> None:
    """Takes all batches through the layer ahead, whose parameters are `params`."""
    self._on_way = [
      _through(self.config, params, x, self._of_layer(context))
      for x, (context, _) in zip(self._on_way, self._around, strict=True)
    ]
    self.number += 1

  def _of_layer(self, context):
    return context if self._kinds is None else context[self._kinds[self.number]]


def require_decoder(model: Any) -> None:
  """Raises ValueError if it is another kind of model, which no calibration goes through."""
  if not isinstance(model, Decoder):
    raise ValueError("calibration goes through the layers of a decoder, which this model is not")


def _is_observer(node):
  return isinstance(node, (Moments, Magnitudes))


def _first_reader(path, kernels):
  """The projection that is watched for all that read the same."""
  group, name, leaf = path.rsplit("/", 2) if path.count("/") > 1 else ("", "", "")
  for readers in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
    if name in readers:
      return next(p for p in (f"{group}/{reader}/{leaf}" for reader in readers) if p in kernels)
  return path


@partial(jax.jit, static_argnums=0)
def _enter(model, params, batch):
  x, context, _, _ = model.apply(
    {"params": params},
    batch["tokens"],
    batch["positions"],
    batch["segments"],
    prefix=batch.get("prefix"),
    method="enter",
  )
  return x, context, batch["segments"] > 0


@partial(jax.jit, static_argnums=0)
def _through(config, params, x, context):
  return Block(config, parent=None).apply({"params": params}, x, context)[0]


@partial(jax.jit, static_argnums=0)
def _observe(config, params, observers, x, context):
  variables = {"params": params, OBSERVERS: observers}
  _, changed = Block(config, parent=None).apply(variables, x, context, mutable=[OBSERVERS])
  return changed[OBSERVERS]
