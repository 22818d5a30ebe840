"""Several adapters at once, which act one after the other where they meet."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core import tree
from research.peft.adapter import Adapter, sites

Tree = Any


@struct.dataclass
class Stacked(Adapter):
  """Adapters of one site: each takes what the one before has given.

  At a kernel they add up: a LoRA after another gives `y + s x a b + s' x a' b'`. The virtual tokens
  of each follow those of the one before, and the newest prefix is in front of the others.

  Invariant: only the first goes by the kernel as it is, so that merging them in turn is the same.
  """

  parts: tuple[Adapter, ...]

  def __call__(self, value, *, rng=None, **context):
    """`value` as the last of them gives it."""
    for i, part in enumerate(self.parts):
      value = part(value, rng=None if rng is None else jax.random.fold_in(rng, i), **context)
      if "ids" in context:
        context["ids"] = context["ids"] + part.virtual_tokens
    return value

  def merge(self, kernel):
    """The kernel with each of them folded in, computed in float32, in its own type."""
    merged = kernel.astype(jnp.float32)
    for part in self.parts:
      merged = part.merge(merged)
    return merged.astype(kernel.dtype)

  def merge_bias(self, bias):
    """See `Adapter.merge_bias`."""
    for part in self.parts:
      bias = part.merge_bias(bias)
    return bias

  def trains(self, leaf: str) -> bool:
    """See `Adapter.trains`; `parts/1/a` is what the second has as `a`."""
    _, number, own = leaf.split("/", 2)
    return self.parts[int(number)].trains(own)

  def materialize(self) -> Adapter:
    """See `Adapter.materialize`."""
    return Stacked(tuple(part.materialize() for part in self.parts))

  @property
  def mergeable(self) -> bool:
    """See `Adapter.mergeable`."""
    return all(part.mergeable for part in self.parts)

  @property
  def frozen_kernel(self) -> bool:
    """See `Adapter.frozen_kernel`."""
    return any(part.frozen_kernel for part in self.parts)

  @property
  def reads_kernel(self) -> bool:
    """See `Adapter.reads_kernel`."""
    return self.parts[0].reads_kernel

  @property
  def spares_head(self) -> bool:
    """See `Adapter.spares_head`."""
    return any(part.spares_head for part in self.parts)

  @property
  def virtual_tokens(self) -> int:
    return sum(part.virtual_tokens for part in self.parts)

  @property
  def offset(self) -> int:
    return sum(part.offset for part in self.parts)


def stacked(trees: Sequence[Tree]) -> Tree:
  """One tree of adapters in which all of `trees` are active, in this order.

  A site that one of them has alone is as it has it.

  Raises:
    ValueError: an adapter that goes by the kernel as it is (DoRA, IA3 of a projection's inputs) is
      not the first at its site, or one is a part of its base.
  """
  found: dict[str, list[Adapter]] = {}
  for one in trees:
    for path, adapter in sites(one):
      name = type(adapter).__name__
      if getattr(adapter, "residual", False):
        raise ValueError(f"the {name} at {path!r} is a part of its base; peft.plain makes it plain")
      if adapter.reads_kernel and path in found:
        raise ValueError(f"the {name} at {path!r} goes by the kernel as it is; put it first")
      found.setdefault(path, []).append(adapter)
  return tree.unflatten(
    {path: parts[0] if len(parts) == 1 else Stacked(tuple(parts)) for path, parts in found.items()}
  )
