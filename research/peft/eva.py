"""EVA: LoRA that begins with the directions in which its inputs vary, where they vary most.

Paischer et al. 2024, arXiv:2410.07170, section 3 and algorithm 1, as PEFT computes it: `a` is the
principal components of a projection's inputs, around their mean, and ranks go to the projections
whose components explain the most of their variance.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg

from research.core import tree
from research.core.moments import Moments
from research.peft.adapter import is_adapter, sites
from research.peft.lora import LoRA

Tree = Any
Components = tuple[np.ndarray, np.ndarray]  # `[n, k]`, and the share of the variance of each `[k]`


def waiting(adapters: Tree) -> dict[str, LoRA]:
  """The adapters, by path, that are still to begin by what they read."""
  return {
    path: node for path, node in sites(adapters) if isinstance(node, LoRA) and node.eva is not None
  }


def begin(adapters: Tree, moments: Mapping[str, Moments]) -> Tree:
  """`adapters` with those that were `waiting` begun; they change nothing yet, `b` is zero.

  All their ranks are shared out anew: of each matrix, `rho` times its rank at most. Scales stay, as
  with PEFT's `adjust_scaling_factors`; rank 0 is no adapter.

  Args:
    moments: of the inputs of each of `waiting`, by path.

  Raises:
    ValueError: moments are lacking or of nothing.
  """
  pending = waiting(adapters)
  found: dict[str, list[Components]] = {}
  known: dict[bytes, Components] = {}  # projections of one input share them
  for path, node in pending.items():
    if path not in moments or not np.all(np.asarray(moments[path].count) > 0):
      raise ValueError(f"the LoRA at {path!r} begins by what it reads, and that was not measured")
    found[path] = []
    for layer, most in enumerate(_most(node)):
      covariance = moments[path].covariance(layer)
      key = hashlib.sha256(covariance.tobytes() + bytes(most)).digest()
      if key not in known:
        known[key] = principal(covariance, most)
      found[path].append(known[key])
  ranks = redistribute(
    {path: node.ranks for path, node in pending.items()},
    {path: [shares for _, shares in each] for path, each in found.items()},
  )
  flat = tree.flatten(adapters, is_leaf=is_adapter)
  for path, node in pending.items():
    flat[path] = _begun(node, [directions for directions, _ in found[path]], ranks[path])
  return tree.unflatten(flat)


def principal(covariance: np.ndarray, count: int) -> Components:
  """The first principal components of a float64 `[n, n]`, the one that explains most first.

  The largest entry of a component is positive.
  """
  size = len(covariance)
  values, vectors = scipy.linalg.eigh(covariance, subset_by_index=(size - count, size - 1))
  values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
  largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], axis=0)
  return vectors * np.sign(largest), values / np.trace(covariance)


def redistribute(
  ranks: Mapping[str, tuple[int, ...]], shares: Mapping[str, list[np.ndarray]]
) -> dict[str, tuple[int, ...]]:
  """As many ranks in all as there were, where components explain the most.

  Args:
    ranks: by path, of the layers.
    shares: by path and layer, of the variance, in falling order, as many as a layer may get.
  """
  keys = [(path, i) for path, each in shares.items() for i, own in enumerate(each) for _ in own]
  explained = np.concatenate([own for each in shares.values() for own in each])
  counts = {path: [0] * len(each) for path, each in ranks.items()}
  for index in np.argsort(-explained, kind="stable")[: sum(map(sum, ranks.values()))]:
    path, layer = keys[index]
    counts[path][layer] += 1
  return {path: tuple(each) for path, each in counts.items()}


def _most(node: LoRA) -> list[int]:
  limit = min(node.a.shape[-2], node.b.shape[-1])
  return [min(round(rank * node.eva.rho), limit) for rank in node.ranks]  # type: ignore[union-attr]


def _begun(node: LoRA, components: Sequence[np.ndarray], ranks: tuple[int, ...]) -> LoRA:
  width = max([1, *ranks])
  a = np.zeros((len(ranks), node.a.shape[-2], width), np.float32)
  for layer, rank in enumerate(ranks):
    a[layer, :, :rank] = components[layer][:, :rank]
  return node.replace(  # type: ignore[attr-defined]
    a=jnp.asarray(a),
    b=jnp.zeros((len(ranks), width, node.b.shape[-1]), jnp.float32),
    scale=jnp.where(jnp.asarray(ranks) > 0, node.scale, 0.0),
    ranks=ranks,
    eva=None,
  )
