"""LoRAs in slots side by side, of which each row of a batch takes its own.

One program serves any mixture of them: which adapter a row takes is an array, and a slot is written
over without compiling anything anew. (Punica, Chen et al. 2023, arXiv:2310.18547, and S-LoRA, Sheng
et al. 2023, arXiv:2311.03285, gather a row's factors; here all slots are multiplied, side by side,
and what is not the row's is masked between the two products, so that nothing is gathered and the
cost is that of one LoRA of all their ranks.)

L layers, N slots, R rank of a slot, B batch, S sequence.
"""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from research.core import tree
from research.peft import lora
from research.peft.adapter import Adapter, sites
from research.peft.kernel import EXPERTS, dropped
from research.peft.lora import LoRA

Tree = Any
NONE = -1  # the slot of rows without an adapter


@struct.dataclass
class Banked(Adapter):
  """`y + scale[n] * (x a[n]) b[n]` at a projection in layers, `n` the slot of the row or token.

  Slot `n` has the columns `n R` to `n R + R` of `a` and those rows of `b`; factors of a lower rank
  are held by zeros in the last of them, as `LoRA` has it.

  which: int32, the slot of each row of the batch, or of each token, `NONE` for none. A batch may
    have a multiple of these rows, those of a row one after the other: samples, beams. None until
    `route` tells it.
  """

  constants: ClassVar[frozenset[str]] = frozenset({"scale", "ranks", "which"})

  a: jax.Array  # [L, in, N*R]
  b: jax.Array  # [L, N*R, out]
  scale: jax.Array  # [L, N]
  ranks: jax.Array  # int32 [L, N]; no numbers of the program, so that they may change
  which: jax.Array | None = None  # [L, B] or [L, B, S]
  dropout: float = struct.field(pytree_node=False, default=0.0)
  freeze_a: bool = struct.field(pytree_node=False, default=False)

  def trains(self, leaf: str) -> bool:
    """See `Adapter.trains`."""
    return super().trains(leaf) and not (leaf == "a" and self.freeze_a)

  def __call__(self, value, *, x, rng=None, **_):
    """`value [B, S, out]` float32, `x [B, S, in]` -> float32 `[B, S, out]`."""
    x = dropped(x, self.dropout, rng)
    return value + lora.low_rank(x, self.a, self.b, self._gain(x.shape[0]))

  def _gain(self, rows):
    """The scale of each column for each row, 0 in other slots than its own: `[B, S or 1, N*R]`."""
    if self.which is None:
      raise ValueError("a bank of adapters was not told which of them acts (Bank.select)")
    copies, rest = divmod(rows, self.which.shape[0])
    if rest:
      raise ValueError(f"a bank was told of {self.which.shape[0]} rows and the batch has {rows}")
    which = self.which if self.which.ndim == 2 else self.which[:, None]
    which = jnp.repeat(which, copies, axis=0)[..., None]  # [B, S or 1, 1]
    slot = jnp.repeat(jnp.arange(self.slots), self.rank)
    return jnp.where(which == slot, jnp.repeat(self.scale, self.rank), 0.0)

  @property
  def slots(self) -> int:
    """N."""
    return self.scale.shape[-1]

  @property
  def rank(self) -> int:
    """R."""
    return self.a.shape[-1] // self.slots


def together(loras: Sequence[LoRA]) -> Banked:
  """A site's LoRAs of one shape, in as many slots; they keep how they train."""
  ranks = np.array([adapter.ranks for adapter in loras], np.int32).T
  return Banked(
    a=jnp.concatenate([adapter.a for adapter in loras], axis=-1),
    b=jnp.concatenate([adapter.b for adapter in loras], axis=-2),
    scale=jnp.stack([adapter.scale for adapter in loras], axis=-1),
    ranks=jnp.asarray(ranks),
    dropout=loras[0].dropout,
    freeze_a=loras[0].freeze_a,
  )


def route(adapters: Tree, which: jax.Array) -> Tree:
  """`adapters` in which every bank is told the slots of rows, `[B]`, or of tokens, `[B, S]`."""

  def told(node):
    if not isinstance(node, Banked):
      return node
    return node.replace(which=jnp.broadcast_to(which, (node.scale.shape[0], *which.shape)))

  return jax.tree.map(told, adapters, is_leaf=is_banked)


def taken(adapters: Tree, slot: int) -> Tree:
  """`adapters` with the LoRA of one slot in place of every bank that has one there."""
  found = {path: _taken(node, slot) for path, node in sites(adapters)}
  return tree.unflatten({path: node for path, node in found.items() if node is not None})


def is_banked(node: Any) -> bool:
  """Whether it is a bank's at a site, for use as `is_leaf`."""
  return isinstance(node, Banked)


def banks(adapters: Tree) -> list[Banked]:
  """Every bank in `adapters`, inside others included."""
  return [node for node in jax.tree.leaves(adapters, is_leaf=is_banked) if is_banked(node)]


def require_place(path: str) -> None:
  """Raises ValueError unless a bank can be at `path`: what rows are is known in layers alone."""
  if EXPERTS in path or not re.fullmatch(r"(.*/)?layers/.*/kernel", path):
    raise ValueError(f"a bank is for projections in layers, outside of experts; {path!r} is none")


def _taken(node: Adapter, slot: int) -> Adapter | None:
  if not isinstance(node, Banked):
    return node
  ranks = tuple(np.asarray(node.ranks)[:, slot].tolist())
  if not max(ranks):
    return None
  columns = slice(slot * node.rank, slot * node.rank + max(ranks))
  return LoRA(
    a=node.a[..., columns],
    b=node.b[:, columns],
    scale=node.scale[:, slot],
    ranks=ranks,
    dropout=node.dropout,
    freeze_a=node.freeze_a,
  )
