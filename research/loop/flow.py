"""How gradients flow through the layers of a model."""

from __future__ import annotations

import collections
import math
import re
import statistics
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from research.core import tree
from research.peft.adapter import is_adapter

_STEPS = 20  # whose mean counts
_FACTOR = 100.0  # from the median layer's norm, which is told
_STACK = re.compile(r"(?:params|adapters)/((?:\w+/)?layers)/")
_LAYER = re.compile(r"gradients/((?:\w+/)?layers)/\d+")


def norms(gradients: Any) -> dict[str, jax.Array]:
  """Norms of gradients, float32: of each layer `[L]`, by the name of its stack, and `outside` `[]`.

  What trains in a layer counts together, adapters with parameters. Outside are embeddings, norms
  and heads around the layers, what an objective learns, and what all layers share.

  Args:
    gradients: as the trainable tree, None where nothing trains.
  """

  def is_shared(node: Any) -> bool:
    return is_adapter(node) and not node.by_layer

  squares: dict[str, jax.Array] = {"outside": jnp.zeros(())}
  for path, node in tree.flatten(gradients, is_leaf=is_shared).items():
    match = None if is_shared(node) else _STACK.match(path)
    name = match[1] if match else "outside"
    for leaf in jax.tree.leaves(node):
      wide = jnp.square(leaf.astype(jnp.float32))
      own = jnp.sum(wide, axis=tuple(range(1, wide.ndim))) if match else jnp.sum(wide)
      squares[name] = squares.get(name, 0.0) + own
  return {name: jnp.sqrt(total) for name, total in squares.items()}


def named(found: Mapping[str, Any]) -> dict[str, float]:
  """`norms`, on the host, as metrics: `gradients/layers/3`, `gradients/outside`."""
  told: dict[str, float] = {}
  for name, values in found.items():
    if values.ndim:
      told |= {f"gradients/{name}/{i}": float(value) for i, value in enumerate(values)}
    else:
      told[f"gradients/{name}"] = float(values)
  return told


class Uneven:
  """Says once if the gradient of a layer vanishes or explodes beside the median layer's.

  By a factor of 100, in the mean of 20 steps; each stack of layers has a median of its own.
  """

  def __init__(self) -> None:
    self._last: collections.deque[dict[str, float]] = collections.deque(maxlen=_STEPS)
    self._said = False

  def __call__(self, means: Mapping[str, float | None]) -> str | None:
    """The note, after the step with these metrics from which on it is due; once.

    Args:
      means: of a step; read is `gradients/STACK/LAYER`.
    """
    told = {name: value for name, value in means.items() if _LAYER.fullmatch(name)}
    layers = {name: value for name, value in told.items() if value is not None}
    # What was not finite is None in the lines of a run that goes on.
    whole = len(layers) == len(told) and all(map(math.isfinite, layers.values()))
    if self._said or not layers or not whole:
      return None
    self._last.append(layers)
    if len(self._last) < _STEPS:
      return None
    stacks: dict[str, dict[str, float]] = collections.defaultdict(dict)
    for name in layers:
      own = statistics.fmean(step[name] for step in self._last)
      stacks[name.rpartition("/")[0]][name] = own
    for stack in stacks.values():
      median = statistics.median(stack.values())
      if not median:
        continue
      for name, norm in stack.items():
        if not median / _FACTOR < norm < median * _FACTOR:
          self._said = True
          kind = "explodes" if norm > median else "vanishes"
          return (
            f"the gradient of {name.removeprefix('gradients/')} {kind}: its norm is {norm:.2g}, the"
            f" median layer's {median:.2g} (means of {_STEPS} steps)"
          )
    return None
