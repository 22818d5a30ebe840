"""LoRA and DoRA as PEFT writes them.

Where a checkpoint fuses projections that we keep apart (GPT-2's `c_attn`), PEFT holds one
adapter for the fused module. Reading gives each part the shared `lora_A` and its rows of
`lora_B`; writing stacks the parts' factors block-diagonally, which multiplies the rank,
unless the parts still share one `lora_A`.

A LoRA that begins as a part of its base (PiSSA, OLoRA) is written as `research.peft.plain` makes
it: a plain LoRA of twice the rank, as PEFT's `path_initial_model_for_weight_conversion` has it, for
the base as it was. What PEFT has saved without that conversion is not read.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from research.core import matrix, tree
from research.peft import dora, embedding
from research.peft.adapter import sites
from research.peft.dora import DoRA
from research.peft.embedding import EmbeddingLoRA
from research.peft.interchange import kernels
from research.peft.interchange.modules import PREFIX, Modules, Part
from research.peft.lora import LoRA

Tree = Any
# Keys that change what the adapter computes and the values with which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = kernels.NEUTRAL | {
  "alora_invocation_tokens": (None,),
  "arrow_config": (None,),
  "ensure_weight_tying": (False, None),
  "kasa_config": (None,),
  "layer_replication": (None,),
  "lora_bias": (False, None),
  "monteclora_config": (None,),
  "target_parameters": (None, []),
  "trainable_token_indices": (None,),
  "use_bdlora": (None,),
  "use_qalora": (False, None),
}
_A, _B, _MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
_TABLE_A, _TABLE_B, _BASE = "lora_embedding_A", "lora_embedding_B", "base_layer.weight"


def obstacle(adapters: Tree, modules: Modules) -> str | None:
  """Why these adapters cannot be written, None if they can."""
  if reason := kernels.unplaced(adapters, modules):
    return reason
  with_norms = [path for path, adapter in sites(adapters) if isinstance(adapter, DoRA)]
  without = [path for path, adapter in sites(adapters) if not isinstance(adapter, DoRA)]
  if with_norms and without:
    return f"PEFT has LoRA, as at {without[0]!r}, or DoRA, as at {with_norms[0]!r}, not both"
  for path, adapter in sites(adapters):
    if isinstance(adapter, LoRA) and adapter.residual:
      return f"the LoRA at {path!r} is a part of its base; research.peft.plain makes it a plain one"
  return kernels.halved("DoRA", adapters, modules) if with_norms else None


def write(adapters: Tree, modules: Modules) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The config's keys and the tensors of LoRA or DoRA adapters, in float32.

  The adapters are ones without an `obstacle`.
  """
  grouped = kernels.grouped(adapters, modules)
  tensors: dict[str, np.ndarray] = {}
  shapes: dict[str, dict[int, tuple[int, float]]] = {}  # module -> layer -> rank, alpha
  for module, group in grouped.items():
    shapes[module] = {}
    for layer in range(_layers(group)):
      a, b, scale = fuse({part: _factors(adapter, layer) for part, adapter in group.items()})
      if not len(a):
        continue
      name = f"{PREFIX}{module.format(layer)}"
      is_table = any(isinstance(adapter, EmbeddingLoRA) for adapter in group.values())
      tensors[f"{name}.{_TABLE_A if is_table else _A}"] = np.ascontiguousarray(a)
      tensors[f"{name}.{_TABLE_B if is_table else _B}"] = np.ascontiguousarray(b)
      shapes[module][layer] = (len(a), _alpha(scale, len(a)))
      norms = [_norms(adapter, layer) for adapter in group.values() if isinstance(adapter, DoRA)]
      if norms:
        tensors[f"{name}.{_MAGNITUDE}"] = np.concatenate(norms)
  return _config(shapes, modules, grouped), tensors


def read(
  config: Mapping[str, Any], tensors: dict[str, np.ndarray], params: Tree, modules: Modules
) -> Tree:
  """The LoRA or DoRA adapters of a config and its tensors, for the base `params`.

  Raises:
    ValueError: the config asks for what we cannot honour, or a tensor has no place in `params` or
      does not fit.
  """
  _check(config)
  flat = matrix.flatten(params)
  places = kernels.places(params, modules)
  tensors = dict(tensors)
  lows, highs = kernels.take(tensors, _A, places), kernels.take(tensors, _B, places)
  held = {_A: lows, _B: highs}
  if config.get("use_dora"):
    held[_MAGNITUDE] = kernels.take(tensors, _MAGNITUDE, places)
  kernels.require_together(held)
  tables = {suffix: kernels.take(tensors, suffix, places) for suffix in (_TABLE_A, _TABLE_B)}
  kernels.require_together(tables)
  lows, highs = lows | tables[_TABLE_A], highs | tables[_TABLE_B]
  for module, table in kernels.take(tensors, _BASE, places).items():
    _require_same(module, table, flat[places[module][0][0]])
  kernels.require_empty(tensors, "LoRA")
  found: dict[str, dict[int, tuple[np.ndarray, np.ndarray, float]]] = {}
  norms: dict[str, dict[int, np.ndarray]] = {}
  for module, low in lows.items():
    a, b = low.T, highs[module].T  # [in, r], [r, out]
    scale = _scale(config, module, a.shape[1])
    for path, layer, part in places[module]:
      cut = kernels.piece(b, part)
      kernel = flat[path].shape
      if (a.shape[0], cut.shape[1]) != kernel[-2:]:
        raise ValueError(f"{module}: {a.shape} x {b.shape} does not fit {path} {kernel}")
      found.setdefault(path, {})[layer] = (a, cut, scale)
      if module in held.get(_MAGNITUDE, {}):
        norms.setdefault(path, {})[layer] = kernels.piece(held[_MAGNITUDE][module], part)
  dropout = float(config.get("lora_dropout") or 0.0)
  adapters: dict[str, Any] = {
    path: _stack(layers, flat[path].shape, dropout) for path, layers in found.items()
  }
  if embedding.PATH in adapters:
    adapters[embedding.PATH] = embedding.of(adapters[embedding.PATH])
  for path, layers in norms.items():
    adapters[path] = _dora(adapters[path], flat[path], layers)
  return tree.unflatten(adapters)


def _require_same(module, table, ours):
  """PEFT saves a table that it adapts, too; it has to be the base's."""
  ours = np.asarray(ours)
  if table.shape != ours.shape or not np.array_equal(table.astype(ours.dtype), ours):
    raise ValueError(f"the adapter's own {module!r} is not the base's: it is of another base")


def _dora(factors, kernel, norms):
  adapter = dora.with_magnitude(factors, kernel)
  magnitude = kernels.stacked(norms, adapter.magnitude)
  return adapter.replace(magnitude=jnp.asarray(magnitude))


def _alpha(scale, rank):
  return kernels.shortest(scale * rank, lambda alpha: alpha / rank)


def _layers(group):
  return len(next(iter(group.values())).ranks)


def _factors(adapter: LoRA | DoRA, layer: int):
  """`A [r, in]`, `B [out, r]` and the scale of one layer, in PEFT's orientation."""
  of_layer = partial(kernels.layer_of, stack=adapter.scale.ndim, layer=layer)
  a, b, scale = (of_layer(v) for v in (adapter.a, adapter.b, adapter.scale))
  rank = adapter.ranks[layer]
  return a[:, :rank].T, b[:rank].T, float(scale)


def _norms(adapter: DoRA, layer: int):
  return kernels.layer_of(adapter.magnitude, adapter.scale.ndim, layer)


def fuse(
  factors: Mapping[Part, tuple[np.ndarray, np.ndarray, float]],
) -> tuple[np.ndarray, np.ndarray, float]:
  """One `(A, B, scale)` for a module of which each of `factors` holds a part, its key.

  `A [r, in]` and `B [out, r]` of the parts are stacked block-diagonally unless they share one `A`.
  """
  held = list(factors.values())
  start, stop, total = next(iter(factors))
  if stop - start == total:
    return held[0]
  scale = next((f[2] for f in held if len(f[0])), 1.0)
  unit = held[0][1].shape[0] // (stop - start)
  shared = kernels.is_whole(factors) and all(
    np.array_equal(f[0], held[0][0]) and f[2] == held[0][2] for f in held
  )
  if shared:
    return held[0][0], np.concatenate([f[1] for f in held]), scale
  rank = sum(len(f[0]) for f in held)
  b = np.zeros((unit * total, rank), np.float32)
  column = 0
  for (start, stop, _), f in factors.items():
    after = column + len(f[0])
    b[start * unit : stop * unit, column:after] = f[1] * (f[2] / scale)
    column = after
  return np.concatenate([f[0] for f in held]), b, scale


def _config(shapes, modules, grouped):
  each = {m.format(i): shape for m, layers in shapes.items() for i, shape in layers.items()}
  common = Counter(each.values()).most_common(1)[0][0]
  held = {m: [i in shapes[m] for i in range(_layers(group))] for m, group in grouped.items()}
  adapters = [adapter for group in grouped.values() for adapter in group.values()]
  return {
    "r": common[0],
    "lora_alpha": int(common[1]) if common[1].is_integer() else common[1],
    "rank_pattern": {name: rank for name, (rank, _) in each.items() if rank != common[0]},
    "alpha_pattern": {name: alpha for name, (_, alpha) in each.items() if alpha != common[1]},
    **kernels.settings(held, grouped, modules),
    "lora_dropout": max(adapter.dropout for adapter in adapters),
    "use_rslora": False,
    "use_dora": isinstance(adapters[0], DoRA),
    "init_lora_weights": True,
  }


def _check(config):
  kernels.require_neutral(config, NEUTRAL)
  init = config.get("init_lora_weights", True)
  if isinstance(init, str) and init.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
    raise ValueError(
      f"init_lora_weights={init!r} changes the base model; convert the adapter to plain LoRA"
      " with PEFT's path_initial_model_for_weight_conversion first"
    )


def _scale(config, module, rank):
  alpha = config.get("lora_alpha", 8)
  for pattern, value in (config.get("alpha_pattern") or {}).items():
    if re.match(rf"(.*\.)?({pattern})$", module):
      alpha = value
      break
  return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _stack(layers, shape, dropout):
  """A LoRA for a kernel of `shape` from `layer -> (a [in, r], b [r, out], scale)`."""
  stack = shape[:-2]
  count = stack[0] if stack else 1
  width = max(a.shape[1] for a, _, _ in layers.values())
  a = np.zeros((count, shape[-2], width), np.float32)
  b = np.zeros((count, width, shape[-1]), np.float32)
  scale = np.zeros((count,), np.float32)
  ranks = [0] * count
  for layer, (low, high, factor) in layers.items():
    ranks[layer] = low.shape[1]
    a[layer, :, : ranks[layer]], b[layer, : ranks[layer]], scale[layer] = low, high, factor
  if not stack:
    a, b, scale = a[0], b[0], scale[0]
  return LoRA(jnp.asarray(a), jnp.asarray(b), jnp.asarray(scale), tuple(ranks), dropout)
