"""A bank: named LoRAs in slots of one pytree, of which each row of a batch takes its own.

One program serves any mixture of them: which adapter a row takes is an array, and a slot is written
over without compiling anything anew. (Punica, Chen et al. 2023, arXiv:2310.18547, and S-LoRA, Sheng
et al. 2023, arXiv:2311.03285, gather a row's factors; here all slots are multiplied, side by side,
and what is not the row's is masked between the two products, so that nothing is gathered and the
cost is that of one LoRA of all their ranks.)

L layers, N slots, R rank of a slot, B batch, S sequence.
"""

import re
from collections.abc import Mapping, Sequence
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


class Bank:
  """Named LoRAs on one base.

  adapters: the tree that holds them, for the `adapters` collection once rows are told theirs.
  """

  def __init__(self, adapters: Tree, names: Sequence[str | None]):
    self.adapters = adapters
    self._names = list(names)

  @property
  def names(self) -> list[str]:
    """Of the adapters, by slot."""
    return [name for name in self._names if name is not None]

  def numbers(self, names: Sequence[str | None]) -> list[int]:
    """The slots of adapters, `NONE` for None.

    Raises:
      ValueError: there is no such adapter.
    """
    return [NONE if name is None else self._slot(name) for name in names]

  def select(self, rows: Sequence[str | None] | np.ndarray | jax.Array) -> Tree:
    """The adapters for a batch: those of `rows`, names or None, or their slots, int `[B]`.

    Slots may also be `[B, S]`, one a token, for rows of packed documents. One row stands for any
    number.

    Raises:
      ValueError: there is no such adapter or slot.
    """
    if isinstance(rows, np.ndarray | jax.Array):
      which = np.asarray(rows, np.int32)
      if which.size and not NONE <= which.min() <= which.max() < len(self._names):
        raise ValueError(f"slots are {NONE}, for none, to {len(self._names) - 1}")
    else:
      which = np.asarray(self.numbers(rows), np.int32)
    return route(self.adapters, jnp.asarray(which))

  def put(self, name: str, adapters: Tree) -> None:
    """Puts an adapter into the slot of its name, or a free one.

    Raises:
      ValueError: no slot is free, or the adapter has no place: no LoRA, of a higher rank, or at
        sites that the bank has not.
    """
    if name not in self._names and None not in self._names:
      held = ", ".join(self.names)
      raise ValueError(f"all {len(self._names)} slots of the bank are taken, by {held}")
    new = dict(sites(adapters))
    places: dict[str, Banked] = dict(sites(self.adapters))
    for path, adapter in new.items():
      _require_lora(path, adapter)
      if path not in places:
        near = tree.nearest(path, places)
        raise ValueError(f"the bank has no place for {name!r} at {path!r}{near}")
    columns = {path: _columns(path, place, new.get(path)) for path, place in places.items()}
    slot = self._names.index(name if name in self._names else None)
    self.adapters = tree.unflatten(_written(places, columns, slot))
    self._names[slot] = name

  def remove(self, name: str) -> None:
    """Frees the slot of an adapter.

    Raises:
      ValueError: there is none of this name.
    """
    slot = self._slot(name)
    places: dict[str, Banked] = dict(sites(self.adapters))
    columns = {path: _columns(path, place, None) for path, place in places.items()}
    self.adapters = tree.unflatten(_written(places, columns, slot))
    self._names[slot] = None

  def take(self, name: str) -> Tree:
    """The adapter of a name, alone; it stays in the bank.

    Raises:
      ValueError: there is none.
    """
    return taken(self.adapters, self._slot(name))

  def _slot(self, name: str) -> int:
    if name not in self.names:
      held = ", ".join(self.names) or "none"
      raise ValueError(
        f"the bank has no adapter {name!r}{tree.nearest(name, self.names)}; it has {held}"
      )
    return self._names.index(name)


def bank(named: Mapping[str, Tree], slots: int = 0, rank: int = 0) -> Bank:
  """A bank of LoRAs at projections in layers, for one base.

  Args:
    named: name -> tree of adapters. Their dropout, which is for training, is left behind.
    slots: N, by default as many as there are adapters.
    rank: R, by default the largest of their ranks.

  Raises:
    ValueError: there is none, an adapter is no LoRA or at another site, they are for different
      bases, or there is no room for them.
  """
  slots = slots or len(named)
  held: dict[str, LoRA] = {}
  ranks = [rank]
  for one in named.values():
    for path, adapter in sites(one):
      found = _require_lora(path, adapter)
      held.setdefault(path, found)
      ranks += [] if rank else found.ranks
  if not held:
    raise ValueError("a bank needs an adapter, which tells its sites")
  if len(named) > slots:
    raise ValueError(f"{len(named)} adapters have no room in {slots} slots")
  empty = {path: _empty(shape, slots, max(ranks)) for path, shape in held.items()}
  made = Bank(tree.unflatten(empty), [None] * slots)
  for name, one in named.items():
    made.put(name, one)
  return made


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


def _require_lora(path: str, adapter: Adapter) -> LoRA:
  if type(adapter) is not LoRA:
    raise ValueError(f"a bank holds LoRAs alone; at {path!r} is a {type(adapter).__name__}")
  if adapter.residual:
    raise ValueError(f"the LoRA at {path!r} is a part of its base; peft.plain makes it a plain one")
  require_place(path)
  return adapter


def _empty(like: LoRA, slots: int, rank: int) -> Banked:
  layers, features, out = len(like.ranks), like.a.shape[-2], like.b.shape[-1]
  return Banked(
    a=jnp.zeros((layers, features, slots * rank), jnp.float32),
    b=jnp.zeros((layers, slots * rank, out), jnp.float32),
    scale=jnp.zeros((layers, slots), jnp.float32),
    ranks=jnp.zeros((layers, slots), jnp.int32),
  )


def _columns(path: str, place: Banked, adapter: Adapter | None) -> tuple[np.ndarray, ...]:
  """What the slot of an adapter holds: `a [L, in, R]`, `b [L, R, out]`, scale and ranks `[L]`."""
  layers, features, _ = place.a.shape
  out = place.b.shape[-1]
  a = np.zeros((layers, features, place.rank), np.float32)
  b = np.zeros((layers, place.rank, out), np.float32)
  if adapter is None:
    return a, b, np.zeros(layers, np.float32), np.zeros(layers, np.int32)
  found = _require_lora(path, jax.device_get(adapter))
  shape = (len(found.ranks), found.a.shape[-2], found.b.shape[-1])
  if shape != (layers, features, out):
    raise ValueError(f"adapters at {path!r} are for kernels {(layers, features, out)} and {shape}")
  most = max(found.ranks)
  if most > place.rank:
    raise ValueError(f"rank {most} at {path!r}: a slot of the bank has {place.rank}")
  a[..., :most], b[:, :most] = found.a[..., :most], found.b[:, :most]
  return a, b, np.asarray(found.scale, np.float32), np.asarray(found.ranks, np.int32)


@jax.jit  # the slot is a number, so that one program writes any of them
def _written(places: dict[str, Banked], columns: Any, slot: jax.Array) -> dict[str, Banked]:
  def write(place, new):
    put = jax.lax.dynamic_update_slice_in_dim
    a, b, scale, ranks = new
    return place.replace(
      a=put(place.a, a, slot * place.rank, axis=2),
      b=put(place.b, b, slot * place.rank, axis=1),
      scale=put(place.scale, scale[:, None], slot, axis=1),
      ranks=put(place.ranks, ranks[:, None], slot, axis=1),
    )

  return {path: write(place, columns[path]) for path, place in places.items()}


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
