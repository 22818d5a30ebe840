"""LoRAs that begin as a part of their base: taking it out, and telling what was learnt.

`attach` gives the factors alone; a run takes their first product out of the base, before which the
factors are kept (`starts`), since PEFT's format has them as a change of the base as it was.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import matrix, tree
from research.peft.adapter import is_adapter, sites
from research.peft.lora import LoRA

Tree = Any


def residual(params: Tree, adapters: Tree) -> Tree:
  """`params` without what the new `adapters` begin as, `kernel - scale * a b`, in its own type.

  Only adapters with a `start` change anything. `params` and `adapters` together are the model that
  `params` alone were; a kernel in bfloat16 is rounded once.
  """
  flat = matrix.flatten(params)
  for path, adapter in _begun(adapters):
    flat[path] = adapter.replace(scale=-adapter.scale).merge(flat[path])
  return tree.unflatten(flat)


def starts(adapters: Tree) -> dict[str, LoRA]:
  """The new adapters that begin as a part of the base, by path, kept on the host for `plain`."""
  return {path: jax.device_get(adapter) for path, adapter in _begun(adapters)}


def plain(adapters: Tree, starts: Mapping[str, LoRA]) -> Tree:
  """Trained `adapters` for the base as it was: `scale (a b - a0 b0)`, LoRAs of twice the rank.

  Args:
    adapters: after training.
    starts: what `starts` gave before it; other adapters are returned as they are.

  Raises:
    ValueError: an adapter began as a part of the base and is not in `starts`.
  """
  flat = tree.flatten(adapters, is_leaf=is_adapter)
  for path, adapter in _begun(adapters):
    if path not in starts:
      raise ValueError(f"the adapter at {path!r} began as a part of its base; its start is unknown")
    flat[path] = _difference(jax.device_get(adapter), starts[path])
  return tree.unflatten(flat)


def _begun(adapters):
  for path, adapter in sites(adapters):
    if isinstance(adapter, LoRA) and adapter.residual:
      yield path, adapter


def _difference(trained, start):
  """`[a, a0]` and `[b; -b0]`, the live columns of each layer first."""
  *stack, features, width = trained.a.shape
  a = np.zeros((len(trained.ranks), features, 2 * width), np.float32)
  b = np.zeros((len(trained.ranks), 2 * width, trained.b.shape[-1]), np.float32)
  for sign, lora in ((1, trained), (-1, start)):
    for i, rank in enumerate(trained.ranks):
      columns = slice(0, rank) if sign > 0 else slice(rank, 2 * rank)
      a[i, :, columns] = lora.a.reshape(-1, features, width)[i, :, :rank]
      b[i, columns] = sign * lora.b.reshape(-1, *lora.b.shape[-2:])[i, :rank]
  return trained.replace(
    a=jnp.asarray(a.reshape(*stack, *a.shape[1:])),
    b=jnp.asarray(b.reshape(*stack, *b.shape[1:])),
    ranks=tuple(2 * rank for rank in trained.ranks),
    residual=False,
  )
