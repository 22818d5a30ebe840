"""What layers keep of the forward pass for the backward one: policies, by names of values.

Layers name what is dear to compute again. A policy says which of those names are kept; everything
else is computed again in the backward pass, from what was kept and from the layer's input (Chen et
al. 2016, arXiv:1604.06174; what to choose, Korthikanti et al. 2022, arXiv:2205.05198, section 5).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from research.core import tree

PROJECTION = "projection"  # what a projection gives, in the type of activations
ATTENTION = "attention"  # what attention gives, and what its derivative needs of the scores
# cuDNN's kernel gives both, and nothing within JAX's function of it has a name.
_CUDNN = "dot_product_attention_fwd_wrapper"

# By name, from the least that is computed again to the most: the names that are kept. Each keeps
# attention, whose work grows with the square of a row's length and what it gives does not.
POLICIES: dict[str, frozenset[str]] = {
  "products": frozenset({PROJECTION, ATTENTION}),
  "attention": frozenset({ATTENTION}),
}
# All that `model.remat` can be, in that order: nothing is computed again, ..., everything is.
CHOICES: tuple[bool | str, ...] = (False, *POLICIES, True)


def require(remat: Any) -> None:
  """Raises ValueError unless `remat` is one of `CHOICES`."""
  if not isinstance(remat, bool) and remat not in POLICIES:
    raise ValueError(
      f"remat is {remat!r}{tree.nearest(str(remat), POLICIES)}; it is False, True or a policy:"
      f" {', '.join(POLICIES)}"
    )


def checkpointed(lift: Callable[..., Any], layer: Any, remat: bool | str, **options: Any) -> Any:
  """`layer`, of which the backward pass computes again what `remat` does not keep.

  Args:
    lift: `jax.checkpoint`, or `nn.remat` for a module.
    remat: one of `CHOICES`.
    options: of `lift`.

  Raises:
    ValueError: see `require`.
  """
  require(remat)
  if remat is False:
    return layer
  return lift(layer, policy=None if remat is True else _policy(POLICIES[remat]), **options)


@functools.cache  # a policy is a part of what is traced: the same one each time
def _policy(names: frozenset[str]) -> Callable[..., Any]:
  named = jax.checkpoint_policies.save_only_these_names(*names)
  return lambda primitive, *_, **params: primitive.name == _CUDNN or named(primitive, *_, **params)


def keep(value: jax.Array, name: str) -> jax.Array:
  """`value`, under a name by which policies keep it."""
  return checkpoint_name(value, name)
