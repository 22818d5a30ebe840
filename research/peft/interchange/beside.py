"""What PEFT's files hold beside adapters at kernels: whole modules, and rows of the table.

A module of `modules_to_save` is under its own name, `lm_head.weight`. Trainable tokens are
`token_adapter.trainable_tokens_delta [n, D]`, and where there is no adapter beside them, a method
of their own, without `token_adapter`; they are rows, and no differences.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from research.core import matrix, tree
from research.peft import tokens as tokens_lib
from research.peft.adapter import sites
from research.peft.interchange import kernels
from research.peft.interchange.modules import PREFIX, Modules
from research.peft.saved import Saved, is_shared
from research.peft.tokens import TrainableTokens

Tree = Any
Tensors = dict[str, np.ndarray]

TOKENS = "TRAINABLE_TOKENS"  # the `peft_type` of tokens alone
KINDS = ("ADALORA", "IA3", "LORA", "VERA", TOKENS)  # what modules may be beside
DELTA = "trainable_tokens_delta"
_HEAD = "lm_head/kernel"


def split(adapters: Tree) -> tuple[Tree, Tree]:
  """Adapters that are files of a method, and what can be beside them."""
  main: dict[str, Any] = {}
  others: dict[str, Any] = {}
  for path, adapter in sites(adapters):
    beside = isinstance(adapter, Saved | TrainableTokens)
    (others if beside else main)[path] = adapter
  return tree.unflatten(main), tree.unflatten(others)


def obstacle(others: Tree, modules: Modules, kind: str | None) -> str | None:
  """Why `others` cannot be written beside adapters of `kind`, or alone; None if they can."""
  found: dict[str, Any] = dict(sites(others))
  saved = [path for path, node in found.items() if isinstance(node, Saved)]
  tokens = [path for path, node in found.items() if isinstance(node, TrainableTokens)]
  if saved and kind not in KINDS:
    return f"PEFT has no whole module, as at {saved[0]!r}, beside {kind or 'no adapter'}"
  if tokens and kind not in (None, "LORA"):
    return f"PEFT has trainable tokens alone or beside LoRA, not beside {kind}"
  for path in [_kernel(path) for path in saved] + tokens:
    if path not in modules:
      return f"PEFT's files hold whole modules; {path!r} is none that has a name there"
  group: dict[str, list[Any]] = {}
  for path in saved:
    module, part = modules[_kernel(path)]
    group.setdefault(f"{module}.{_suffix(path)}", []).append(part)
  for name, parts in group.items():
    if not kernels.is_whole(parts):
      return f"PEFT's files hold whole modules; of {name!r} a part was trained"
  if kind != "LORA" and any(found[path].shared for path in saved):
    return f"PEFT saves a table that is the head beside LoRA, not beside {kind}"
  return None


def write(others: Tree, modules: Modules, alone: bool) -> tuple[dict[str, Any], Tensors]:
  """The config's keys and the tensors, in float32, of what has no `obstacle`.

  Args:
    alone: whether there are no adapters beside.
  """
  config: dict[str, Any] = {}
  tensors: Tensors = {}
  parts: dict[str, dict[Any, np.ndarray]] = {}  # by tensor
  names = set()
  for path, node in sites(others):
    module, part = modules[_kernel(path)]
    if isinstance(node, TrainableTokens):
      within = "" if alone else "token_adapter."
      tensors[f"{PREFIX}{module}.{within}{DELTA}"] = np.asarray(node.rows, np.float32)
      ids = list(node.ids)
      config |= (
        {"token_indices": ids, "target_modules": module, "init_weights": True}
        if alone
        else {"trainable_token_indices": {module.rpartition(".")[2]: ids}}
      )
    elif isinstance(node, Saved):
      value = np.asarray(node.value, np.float32)
      layers = value if "{}" in module else value[None]
      for layer, own in enumerate(layers):
        own = own.T if _is_turned(path, module) else own
        parts.setdefault(f"{PREFIX}{module.format(layer)}.{_suffix(path)}", {})[part] = own
        names.add(module.format(layer))
      if node.shared:  # PEFT writes the table under both of its names
        config["ensure_weight_tying"] = True
        parts[f"{PREFIX}{modules[_HEAD][0]}.weight"] = {part: value}
  for name, each in parts.items():
    axis = 0 if not kernels.fan_in_fan_out([name]) else -1
    tensors[name] = np.ascontiguousarray(
      np.concatenate([each[part] for part in sorted(each)], axis=axis)
    )
  if names:
    config["modules_to_save"] = sorted(names)
  return config, tensors


def take(
  config: Mapping[str, Any], tensors: Tensors, params: Tree, modules: Modules
) -> tuple[dict[str, Any], Tensors, Tree]:
  """What is beside adapters, and the config and tensors without it.

  Raises:
    ValueError: a module has no place in `params` or does not fit, or is a table that PEFT has taken
      apart from the head that shares it.
  """
  config, tensors = dict(config), dict(tensors)
  flat = matrix.flatten(params)
  found: dict[str, Any] = {}
  indices = config.pop("trainable_token_indices", None)
  alone = config.get("peft_type") == TOKENS
  if alone:
    indices = config.get("token_indices")
  if indices is not None:
    found[tokens_lib.SITE] = _tokens(indices, tensors, flat, modules, alone)
  if names := config.pop("modules_to_save", None):
    config.pop("ensure_weight_tying", None)  # the tensors tell
    saved = _saved(tensors, flat, modules)
    if not saved:
      raise ValueError(f"modules_to_save={names}: the adapter has no projection or table of these")
    found |= saved
  return config, tensors, tree.unflatten(found)


def _kernel(path: str) -> str:
  return f"{path.removesuffix('/bias')}/kernel" if path.endswith("/bias") else path


def _suffix(path: str) -> str:
  return "bias" if path.endswith("/bias") else "weight"


def _is_turned(path: str, module: str) -> bool:
  """Whether PEFT has the transpose of a parameter."""
  return path.endswith("/kernel") and not kernels.fan_in_fan_out([module])


def _tokens(indices, tensors, flat, modules, alone):
  if tokens_lib.SITE not in modules:
    raise ValueError(
      "the adapter trains tokens, and the model's family has no name for their table"
    )
  module = modules[tokens_lib.SITE][0]
  if isinstance(indices, Mapping):
    ((name, ids),) = indices.items() if len(indices) == 1 else ((str(sorted(indices)), []),)
    if not module.endswith(name):
      raise ValueError(f"adapter_config.json: trainable tokens of {name} cannot be honoured")
    indices = ids
  within = "" if alone else "token_adapter."
  name = f"{PREFIX}{module}.{within}{DELTA}"
  if name not in tensors:
    raise ValueError(f"the adapter has no {name}")
  rows = np.asarray(tensors.pop(name), np.float32)
  if _HEAD not in flat:  # PEFT writes the same rows under the head that shares them
    tensors.pop(f"{PREFIX}{modules[_HEAD][0]}.{within}{DELTA}", None)
  table = flat[tokens_lib.SITE].shape
  if rows.shape != (len(indices), table[1]) or not max(indices) < table[0]:
    raise ValueError(f"{name} {rows.shape} of ids to {max(indices)} does not fit a table {table}")
  return TrainableTokens(jnp.asarray(rows), tuple(int(i) for i in indices))


def _saved(tensors, flat, modules):
  """Takes whole modules out of `tensors`."""
  found = {}
  taken = set()
  for path, leaf in flat.items():
    module, part = modules.get(_kernel(path), (None, None))
    if module is None:
      continue
    stacked = "{}" in module
    for layer in range(leaf.shape[0] if stacked else 1):
      name = f"{PREFIX}{module.format(layer)}.{_suffix(path)}"
      if name not in tensors:
        continue
      value = np.asarray(tensors[name], np.float32)
      own = kernels.piece(value.T if _is_turned(path, module) else value, part)
      shape = leaf.shape[1:] if stacked else leaf.shape
      if own.shape != shape:
        raise ValueError(f"{name} {value.shape} does not fit {path} {tuple(leaf.shape)}")
      # Layers that were not saved are as in the base.
      taken.add(name)
      whole = found.setdefault(path, np.array(leaf, np.float32))
      (whole[layer] if stacked else whole)[...] = own
  if tokens_lib.SITE in found and is_shared(tokens_lib.SITE, flat):
    head = f"{PREFIX}{modules[_HEAD][0]}.weight"
    if not np.array_equal(tensors.get(head, ()), found[tokens_lib.SITE]):
      raise ValueError(
        "modules_to_save holds a table of tokens that is not the head, too; in the model it is, so"
        " that this cannot be honoured; PEFT keeps them together by ensure_weight_tying"
      )
    taken.add(head)
  for name in taken:
    del tensors[name]
  return {p: Saved(jnp.asarray(value), is_shared(p, flat)) for p, value in found.items()}
