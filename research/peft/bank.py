"""A bank: named LoRAs in slots of one pytree, put, taken and told to rows by their names.

L layers, N slots, R rank of a slot, B batch, S sequence.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import tree
from research.peft.adapter import Adapter, sites
from research.peft.banked import NONE, Banked, require_place, route, taken
from research.peft.lora import LoRA

Tree = Any


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
    places = self._places()
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
    places = self._places()
    columns = {path: _columns(path, place, None) for path, place in places.items()}
    self.adapters = tree.unflatten(_written(places, columns, slot))
    self._names[slot] = None

  def take(self, name: str) -> Tree:
    """The adapter of a name, alone; it stays in the bank.

    Raises:
      ValueError: there is none.
    """
    return taken(self.adapters, self._slot(name))

  def _places(self) -> dict[str, Banked]:
    return {path: node for path, node in sites(self.adapters) if isinstance(node, Banked)}

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
