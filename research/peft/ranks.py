"""How AdaLoRA's ranks are taken away while it trains: an optimizer around the optimizer.

Zhang et al. 2023, arXiv:2303.10512, section 3.2 and algorithm 1, with the steps of PEFT's
`RankAllocator`. A rank of a matrix is a triplet: a column of `a`, an entry of `e` and a row of `b`.
Its importance is that of its entries, and the least important of all matrices' lose their `e`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from research.core import tree
from research.peft.adalora import Budget, training

Tree = Any
Wrap = Callable[[optax.GradientTransformation], optax.GradientTransformation]


class Ranks(NamedTuple):
  """The state of the allocation, with that of the optimizer inside.

  updates: int32: how many there have been.
  sensitivity, uncertainty: by path, as in the trainable tree: moving averages of each entry of `a`,
    `e` and `b`.
  live: by path, of each entry of `e`: whether the last allocation kept it.
  """

  updates: jax.Array
  sensitivity: Tree
  uncertainty: Tree
  live: Tree
  inner: Any


def allocation(trainable: Tree, total_steps: int) -> Wrap | None:
  """What makes an optimizer reallocate ranks of AdaLoRA; None where none trains.

  The gradients that the optimizer gets tell importance, so that it goes around all that comes after
  a clip. Sensitivity is of parameters as they are after the update, as in PEFT.

  Args:
    trainable: a tree with None where nothing trains; leaves may be shapes.
    total_steps: the length of the run, in updates.

  Raises:
    ValueError: adapters differ in their budget, or the run is too short for it.
  """
  found = dict(training(trainable))
  if not found:
    return None
  first, *others = {node.budget: path for path, node in found.items()}.items()
  if others:
    raise ValueError(
      f"AdaLoRA shares one budget among all matrices; {first[1]!r} and {others[0][1]!r} have two"
    )
  budget = first[0]
  start = sum(node.e.size for node in found.values())
  matrices = sum(node.e.size // node.e.shape[-1] for node in found.values())
  kept = schedule(budget, start, budget.target_r * matrices, total_steps)
  return lambda optimizer: _reallocating(optimizer, budget, kept)


def schedule(budget: Budget, start: int, target: int, total_steps: int) -> np.ndarray:
  """int32 `[total_steps]`: how many triplets an allocation after each update keeps.

  -1: there is none after it. Between `tinit` and `tfinal` the number falls by a cubic (eq. 12).

  Args:
    start, target: the number at first and in the end.

  Raises:
    ValueError: nothing is left between `tinit` and `tfinal`.
  """
  first, last = budget.tinit, total_steps - budget.tfinal
  if first >= last:
    raise ValueError(
      f"AdaLoRA's tinit {first} and tfinal {budget.tfinal} leave none of {total_steps} steps"
    )
  kept = np.full(total_steps, -1, np.int32)
  for step in range(first + 1, min(last + 1, total_steps)):
    if step == last or step % budget.deltaT == 0:
      kept[step] = int((start - target) * (1 - (step - first) / (last - first)) ** 3 + target)
  return kept


def _reallocating(
  inner: optax.GradientTransformation, budget: Budget, kept: np.ndarray
) -> optax.GradientTransformation:
  last = len(kept) - budget.tfinal

  def init(params: Tree) -> Ranks:
    entries = _entries(params)
    zeros = tree.unflatten({path: jnp.zeros_like(leaf) for path, leaf in entries.items()})
    live = {p: jnp.ones(leaf.shape, bool) for p, leaf in entries.items() if p.endswith("/e")}
    none = jnp.zeros((), jnp.int32)
    return Ranks(none, zeros, zeros, tree.unflatten(live), inner.init(params))

  def update(gradients: Tree, state: Ranks, params: Tree | None = None) -> tuple[Tree, Ranks]:
    if params is None:
      raise ValueError("importance is that of parameters; give them to `update`")
    updates, own = inner.update(gradients, state.inner, params)
    before, changes, slopes = (_entries(each) for each in (params, updates, gradients))
    sensitivity, uncertainty = tree.flatten(state.sensitivity), tree.flatten(state.uncertainty)
    scores = {}
    for path, value in before.items():
      importance = jnp.abs((value + changes[path]) * slopes[path])
      smooth = _average(budget.beta1, sensitivity[path], importance)
      unsure = _average(budget.beta2, uncertainty[path], jnp.abs(importance - smooth))
      measuring = state.updates < last
      sensitivity[path] = jnp.where(measuring, smooth, sensitivity[path])
      uncertainty[path] = jnp.where(measuring, unsure, uncertainty[path])
      scores[path] = sensitivity[path] * uncertainty[path]

    keep = jnp.asarray(kept)[state.updates]
    allocating = keep >= 0
    best = _best(scores, keep)
    live = {p: jnp.where(allocating, best[p], old) for p, old in tree.flatten(state.live).items()}
    holding = allocating | (state.updates > last)

    def hold(path: str, change: jax.Array) -> jax.Array:
      # Not less: what is taken away is exactly zero.
      return jnp.where(holding & ~live[path], -before[path], change) if path in live else change

    averages = tree.unflatten(sensitivity), tree.unflatten(uncertainty)
    state = Ranks(state.updates + 1, *averages, tree.unflatten(live), own)
    return tree.map_with_path(hold, updates), state

  return optax.GradientTransformation(init, update)


def _entries(trainable: Tree) -> dict[str, jax.Array]:
  """`path -> leaf` of what AdaLoRA trains."""
  return {
    f"{path}/{name}": getattr(node, name)
    for path, node in training(trainable)
    for name in ("a", "e", "b")
  }


def _average(beta, old, new):
  return beta * old + (1 - beta) * new


def _best(scores: dict[str, jax.Array], keep: jax.Array) -> dict[str, jax.Array]:
  """By path of an `e`, whether each triplet is among the `keep` most important of all.

  A triplet's score is that of its entry of `e` and the means of its entries of `a` and `b` (eq. 8);
  those that tie with the first to go, go too.
  """
  found = {}
  for path, own in scores.items():
    site, _, name = path.rpartition("/")
    if name == "e":
      found[path] = own + scores[f"{site}/a"].mean(axis=-2) + scores[f"{site}/b"].mean(axis=-1)
  ranked = jnp.sort(jnp.concatenate([each.reshape(-1) for each in found.values()]))
  gone = ranked.size - keep
  threshold = jnp.where(gone > 0, ranked[jnp.maximum(gone - 1, 0)], -jnp.inf)
  return {path: each > threshold for path, each in found.items()}
