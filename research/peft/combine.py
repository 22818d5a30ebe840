"""One LoRA of several, as PEFT's `add_weighted_adapter` makes it.

Task arithmetic (Ilharco et al. 2022, arXiv:2212.04089), TIES (Yadav et al. 2023, arXiv:2306.01708,
section 3), DARE (Yu et al. 2023, arXiv:2311.03099, section 3.2), magnitude pruning; of the factors,
or of the updates, whose sum is then cut to a rank.

n adapters, R rank.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import tree
from research.peft.adapter import Adapter, sites
from research.peft.embedding import EmbeddingLoRA
from research.peft.lora import LoRA

Tree = Any
Prune = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def _largest(values, density, draws):
  """The `density` share of `values` that is largest, zeros elsewhere."""
  del draws
  if density == 1:
    return values
  kept = np.zeros(values.size, bool)
  kept[np.argsort(-np.abs(values), axis=None, kind="stable")[: int(density * values.size)]] = True
  return np.where(kept.reshape(values.shape), values, 0)


def _random(values, density, draws):
  """A random `density` share of `values`, grown so that the expectation stays."""
  return np.where(draws.random(values.shape) < density, values / density, 0)


# What is left of each adapter's numbers, and whether the signs of those that are left are elected.
_RULES: dict[str, tuple[Prune | None, bool]] = {
  "linear": (None, False),
  "ties": (_largest, True),
  "dare_linear": (_random, False),
  "dare_ties": (_random, True),
  "magnitude_prune": (_largest, False),
}
_OF_UPDATES = {"svd": "linear"} | {f"{name}_svd": name for name in _RULES if name != "linear"}
METHODS = ("cat", *_RULES, *_OF_UPDATES)


def combine(
  adapters: Sequence[Tree],
  weights: Sequence[float],
  method: str = "linear",
  *,
  rank: int = 0,
  density: float = 1.0,
  rng: jax.Array | None = None,
) -> Tree:
  """The LoRAs that do what `weights` times the LoRAs of `adapters` do, or nearly that.

  Each matrix, a site's in a layer, is combined on its own, of the adapters that have it. Where PEFT
  has one LoRA for a fused module (GPT-2's `c_attn`), its parts are pruned one by one here.

  Args:
    adapters: trees of LoRAs for one base.
    weights: one for each of them; negative ones take away.
    method: "cat" puts the factors side by side: the exact sum, of the sum of ranks. "linear" adds
      the factors themselves, each times the root of `weight * scale`, which needs equal ranks, and
      is no sum of updates. "ties", "dare_linear", "dare_ties" and "magnitude_prune" prune the
      factors first; TIES averages the numbers that have the sign of their sum. "svd" is the sum of
      updates cut to `rank`, "ties_svd" and so on are the same of pruned updates.
    rank: of what an SVD is cut to; by default the largest of all adapters' ranks.
    density: the share of numbers that pruning leaves, the largest, or in DARE random ones.
    rng: key of DARE's draws.

  Returns:
    LoRAs of scale 1, without dropout.

  Raises:
    ValueError: there is none, a weight is missing or not finite, an adapter is no LoRA or of
      another base, ranks differ where factors are added, or an argument is out of range or of
      another method.
  """
  _check(adapters, weights, method, rank, density, rng)
  seed = 0 if rng is None else np.asarray(jax.random.key_data(rng)).tolist()
  found: dict[str, list[tuple[int, LoRA]]] = {}
  for i, one in enumerate(adapters):
    for path, adapter in sites(jax.device_get(one)):
      found.setdefault(path, []).append((i, _checked(path, adapter, found.get(path))))
  ranks = [max(lora.ranks) for group in found.values() for _, lora in group]

  def of_matrix(path, layer, parts):
    draws = np.random.default_rng([*np.atleast_1d(seed), zlib.crc32(path.encode()), layer])
    if method == "cat":
      return _side_by_side(parts)
    if method in _RULES:
      return _of_factors(path, parts, partial(_mix, _RULES[method], density, draws))
    updates = [scale * a @ b for _, scale, a, b in parts]
    update = _mix(_RULES[_OF_UPDATES[method]], density, draws, updates, [w for w, *_ in parts])
    return _cut(path, update, rank or min(max(ranks), *update.shape))

  return tree.unflatten(
    {path: _stacked(path, weights, group, of_matrix) for path, group in found.items()}
  )


def require_plain_lora(path: str, adapter: Adapter) -> None:
  """Raises ValueError unless it is a LoRA that is for its base as the base is."""
  if type(adapter) not in (LoRA, EmbeddingLoRA):
    raise ValueError(f"LoRAs alone can be put together; at {path!r} is a {type(adapter).__name__}")
  if isinstance(adapter, LoRA) and adapter.residual:
    raise ValueError(f"the LoRA at {path!r} is a part of its base; peft.plain makes it a plain one")


def _check(adapters, weights, method, rank, density, rng):
  if method not in METHODS:
    near = tree.nearest(method, METHODS)
    raise ValueError(f"method {method!r} is unknown{near}; there are {', '.join(METHODS)}")
  if not adapters:
    raise ValueError("there are no adapters to combine")
  if len(weights) != len(adapters):
    raise ValueError(f"there are {len(weights)} weights for {len(adapters)} adapters")
  if not np.all(np.isfinite(weights)):
    raise ValueError(f"weights are finite numbers, not {list(weights)}")
  if rank < 0 or rank and method not in _OF_UPDATES:
    raise ValueError(
      f"rank {rank} with {method!r}: a positive rank is for {', '.join(_OF_UPDATES)}"
    )
  prune, _ = _RULES.get(_OF_UPDATES.get(method, method), (None, False))
  if not 0 < density <= 1:
    raise ValueError(f"density is {density}; it is above 0 and 1 at most")
  if density != 1 and prune is None:
    raise ValueError(f"density {density} with {method!r}, which prunes nothing")
  if prune is _random and rng is None:
    raise ValueError(f"{method!r} draws what it drops: it needs rng")


def _checked(path, adapter, others):
  require_plain_lora(path, adapter)
  if others:
    shape, other = ((*v.scale.shape, v.a.shape[-2], v.b.shape[-1]) for v in (adapter, others[0][1]))
    if shape != other:
      raise ValueError(f"adapters at {path!r} are for kernels {other} and {shape}: of two bases")
  return adapter


def _stacked(path, weights, group, of_matrix):
  """The LoRA of a site from `of_matrix` of each of its layers' `[(weight, scale, a, b)]`."""
  first = group[0][1]
  stack, features, out = first.scale.shape, first.a.shape[-2], first.b.shape[-1]
  layers = []
  for layer in range(len(first.ranks)):
    parts = [
      (
        weights[i],
        np.float32(v.scale.reshape(-1)[layer]),
        np.asarray(v.a, np.float32).reshape(-1, features, v.a.shape[-1])[layer, :, :r],
        np.asarray(v.b, np.float32).reshape(-1, v.b.shape[-2], out)[layer, :r],
      )
      for i, v in group
      if (r := v.ranks[layer])
    ]
    layers.append(of_matrix(path, layer, parts) if parts else None)
  ranks = tuple(0 if found is None else found[0].shape[1] for found in layers)
  a = np.zeros((len(layers), features, max(ranks)), np.float32)
  b = np.zeros((len(layers), max(ranks), out), np.float32)
  for layer, found in enumerate(layers):
    if found is not None:
      a[layer, :, : ranks[layer]], b[layer, : ranks[layer]] = found
  return type(first)(
    a=jnp.asarray(a.reshape(*stack, *a.shape[1:])),
    b=jnp.asarray(b.reshape(*stack, *b.shape[1:])),
    scale=jnp.asarray(np.reshape(np.array(ranks) > 0, stack), jnp.float32),
    ranks=ranks,
  )


def _side_by_side(parts):
  a = [weight * scale * a for weight, scale, a, _ in parts]
  return np.concatenate(a, axis=1), np.concatenate([b for *_, b in parts])


def _of_factors(path, parts, mix):
  ranks = sorted({a.shape[1] for _, _, a, _ in parts})
  if len(ranks) > 1:
    told = " and ".join(map(str, ranks))
    raise ValueError(f"factors of ranks {told} at {path!r} cannot be added; 'cat' and 'svd' can")
  weights = [weight * scale for weight, scale, _, _ in parts]
  roots = np.sqrt(np.abs(weights))
  a = mix([a for _, _, a, _ in parts], np.sign(weights) * roots)
  return a, mix([b for *_, b in parts], roots)


def _mix(rule, density, draws, held, weights):
  """The weighted sum of what a rule leaves of `held`, arrays of one shape."""
  prune, elects = rule
  if prune is not None:
    held = [prune(values, density, draws) for values in held]
  weighed = [np.float32(weight) * values for weight, values in zip(weights, held, strict=True)]
  if not elects:
    return sum(weighed)
  sign = np.where(sum(held) >= 0, 1, -1)
  agree = [np.sign(values) == sign for values in held]
  chosen = sum(np.where(same, values, 0) for same, values in zip(agree, weighed, strict=True))
  return chosen / np.maximum(sum(same.astype(np.float32) for same in agree), 1)


def _cut(path, update, rank):
  """The nearest `a [in, rank]`, `b [rank, out]` to an update, the values in `b`."""
  most = min(update.shape)
  if rank > most:
    raise ValueError(f"rank {rank} at {path!r}: a {list(update.shape)} has {most} at most")
  u, values, v = np.linalg.svd(update, full_matrices=False)
  return u[:, :rank], values[:rank, None] * v[:rank]
