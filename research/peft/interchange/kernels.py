"""What the formats of methods at kernels share: modules, their layers and what of them we hold."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from research.core import matrix, tree
from research.peft.adapter import sites
from research.peft.interchange.modules import PREFIX, Modules, Part

Tree = Any

# Keys that change what any adapter computes and the values with which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {"bias": ("none",), "modules_to_save": (None, [])}


def unplaced(adapters: Tree, modules: Modules) -> str | None:
  """Which site is no module of the checkpoint, None if all are."""
  for path, _ in sites(adapters):
    if path not in modules:
      return f"PEFT knows no module for {path!r}{tree.nearest(path, modules)}"
  return None


def halved(method: str, adapters: Tree, modules: Modules) -> str | None:
  """Which module has adapters at some of its parts and not at all, None if there is none."""
  for module, group in grouped(adapters, modules).items():
    if not is_whole(group):
      return f"PEFT has {method} at all of {module!r} or none; some of its parts have none here"
  return None


def fused(method: str, adapters: Tree, modules: Modules) -> str | None:
  """Which adapters share a module, None if all have their own."""
  for module, group in grouped(adapters, modules).items():
    if len(group) > 1 or not is_whole(group):
      return f"PEFT has one {method} for all of {module!r}, whose parts have their own here"
  return None


def grouped(adapters: Tree, modules: Modules) -> dict[str, dict[Part, Any]]:
  """`module -> part -> adapter`, parts in order."""
  found: dict[str, dict[Part, Any]] = {}
  for path, adapter in sites(adapters):
    module, part = modules[path]
    found.setdefault(module, {})[part] = adapter
  return {module: dict(sorted(group.items())) for module, group in found.items()}


def is_whole(group: Collection[Part]) -> bool:
  """Whether parts make up their module."""
  return sum(stop - start for start, stop, _ in group) == next(iter(group))[2]


def places(params: Tree, modules: Modules) -> dict[str, list[tuple[str, int, Part]]]:
  """`module, with its layer -> (path, layer, part)` of the kernels in `params` that it holds."""
  kernels = matrix.flatten(params)
  found: dict[str, list[tuple[str, int, Part]]] = {}
  for path, (module, part) in modules.items():
    if path in kernels:
      stack = kernels[path].shape[:-2]
      for layer in range(stack[0] if stack else 1):
        found.setdefault(module.format(layer), []).append((path, layer, part))
  return found


def take(
  tensors: dict[str, np.ndarray], suffix: str, known: Collection[str]
) -> dict[str, np.ndarray]:
  """Removes the tensors `MODULE.suffix` from `tensors`: `module -> tensor` in float32.

  Raises:
    ValueError: a module is not among the `known` ones.
  """
  found = {}
  for name in sorted(name for name in tensors if name.endswith(f".{suffix}")):
    module = name.removeprefix(PREFIX).removesuffix(f".{suffix}")
    if module not in known:
      raise ValueError(
        f"the adapter has {module!r}, the model does not{tree.nearest(module, known)}"
      )
    found[module] = np.asarray(tensors.pop(name), np.float32)
  return found


def piece(vector: np.ndarray, part: Part) -> np.ndarray:
  """What of a module's `[..., out]` is the outputs of one part."""
  start, stop, total = part
  unit = vector.shape[-1] // total
  return vector[..., start * unit : stop * unit]


def layer_of(stacked: Any, stack: int, layer: int) -> np.ndarray:
  """What one layer has of a leaf in float32; `stack` is 1 if there are layers, else 0."""
  return np.asarray(stacked[layer] if stack else stacked, np.float32)


def stacked(layers: Mapping[int, np.ndarray], otherwise: Any) -> np.ndarray:
  """`otherwise`, vectors `[layers, n]` or `[n]`, with those of some layers put in.

  Raises:
    ValueError: a vector is of another length.
  """
  out = np.array(otherwise, np.float32)
  each = out.reshape(-1, out.shape[-1])
  for layer, vector in layers.items():
    if vector.size != each.shape[1]:
      raise ValueError(f"a vector {vector.shape} of layer {layer} does not fit {out.shape}")
    each[layer] = vector.reshape(-1)
  return out


def shortest(value: float, read: Callable[[float], float]) -> float:
  """The number of fewest digits, `value` rounded, that is read as the same float32 as `value`."""
  held = np.float32(read(value))
  rounded = (float(f"{value:.{digits}g}") for digits in range(1, 17))
  return next((number for number in rounded if np.float32(read(number)) == held), value)


def require_neutral(config: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> None:
  """Raises ValueError for a key that would change what the adapter computes."""
  for key, values in neutral.items():
    if key in config and config[key] not in values:
      raise ValueError(f"adapter_config.json: {key}={config[key]!r} cannot be honoured")


def require_empty(tensors: Mapping[str, Any], method: str) -> None:
  """Raises ValueError if tensors are left that the method has no place for."""
  if tensors:
    raise ValueError(f"tensors that are no {method} factors: {', '.join(sorted(tensors)[:6])}")


def require_together(held: Mapping[str, Collection[str]]) -> None:
  """Raises ValueError if a module has one of the tensors and lacks another.

  held: suffix of a tensor's name -> the modules that have it.
  """
  every = {module for modules in held.values() for module in modules}
  for suffix, modules in held.items():
    if lacking := sorted(every - set(modules)):
      raise ValueError(f"the adapter has no {suffix} of {lacking[0]!r}, and other tensors of it")


def targets(held: Mapping[str, Sequence[bool]], modules: Modules) -> list[str]:
  """The shortest names that the modules `held`, and no others of the checkpoint, end with.

  held: module -> whether each layer of its stack has an adapter.
  """
  every = {module for module, _ in modules.values()}
  whole = {module for module, layers in held.items() if all(layers)}
  found: set[str] = set()
  for module, layers in held.items():
    short = _shortest(module, whole, every) if module in whole else None
    named = {module.format(layer) for layer, here in enumerate(layers) if here}
    found |= {short} if short else named
  return sorted(found)


def settings(
  held: Mapping[str, Sequence[bool]], grouped: Collection[str], modules: Modules
) -> dict[str, Any]:
  """The config's keys that low-rank methods share: which modules, and nothing beside them.

  held: as `targets` has it. grouped: the modules that have adapters.
  """
  return {
    "target_modules": targets(held, modules),
    "fan_in_fan_out": fan_in_fan_out(grouped),
    "bias": "none",
    "modules_to_save": None,
    "layers_to_transform": None,
    "layers_pattern": None,
  }


def _shortest(module, whole, every):
  """The shortest end of `module` that only modules in `whole` have; None if the layer is in it."""
  words = module.split(".")
  for start in reversed(range(len(words))):
    name = ".".join(words[start:])
    if "{}" in name:
      return None
    if all(other in whole for other in every if other.endswith(name)):
      return name
  return None


def fan_in_fan_out(held: Collection[str]) -> bool:
  """Whether the modules are GPT-2's, whose matrices are `[in, out]`."""
  return any(word in module for module in held for word in (".c_attn", ".c_fc", ".c_proj"))
