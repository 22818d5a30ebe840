"""Parameters in few bits as the tensors of a Hugging Face directory, and back.

A directory says in `quantization_config` of its `config.json` how projections are stored: in the
convention of another tool (`research.quant.interchange`), or, as "research", any parameter in the
parts of its `QArray`, under our paths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import matrix, tree
from research.core.matrix import is_matrix
from research.models import families, scored
from research.models.config import StackConfig
from research.models.families import weights
from research.models.families.weights import Weight
from research.peft.kernel import EXPERTS
from research.quant import files, interchange
from research.quant.interchange.convention import told
from research.quant.mixed import Mixed
from research.quant.policy import Choice
from research.quant.qarray import QArray
from research.quant.scheme import Scheme

Tree = Any
Tensors = Mapping[str, np.ndarray]
OURS = "research"


def write(
  config: StackConfig, params: Tree, method: str, dtype: str
) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, str]]:
  """The tensors of `params`, of which some are `QArray`s, and what is told of them.

  That is the `quantization_config` of the model, and what headers of its files say.

  Args:
    config: the model's.
    params: layers stacked.
    method: "research", or a key of `interchange.CONVENTIONS`.
    dtype: the type of what is not in few bits.

  Raises:
    ValueError: nothing is in few bits, the method has no place for it, or a number is too large
      for the type.
  """
  flat = {
    path: _in_type(path, leaf, dtype)
    for path, leaf in matrix.flatten(jax.device_get(params)).items()
  }
  held = {path: leaf for path, leaf in flat.items() if is_matrix(leaf)}
  if not held:
    raise ValueError("nothing is held in few bits; rules in a config's `quantize` do it")
  dense = {path: leaf for path, leaf in flat.items() if path not in held}
  if method == OURS:
    arrays, how = files.to_arrays(tree.unflatten(dense | held))
    return arrays, {"quant_method": OURS, "held": how}, {}
  shapes = {path: leaf.shape for path, leaf in flat.items()}
  schemes = {
    path: leaf.schemes if isinstance(leaf, Mixed) else leaf.scheme for path, leaf in held.items()
  }
  require(config, schemes, shapes, method)
  convention = interchange.find(method)
  table = _table(config)
  kernels = [path for path in flat if path.startswith("layers/") and path.endswith("/kernel")]
  modules = {path: _module(table[path]).partition("{}.")[2] for path in kernels}
  settings = convention.settings(held, modules, _outside(table), dtype)
  tensors = weights.save(list(table.values()), tree.unflatten(dense))
  for path, leaf in held.items():
    for number in range(leaf.shape[0]):
      layer = jax.tree.map(lambda part: part[number], leaf)  # noqa: B023
      module = _module(table[path]).format(number)
      for name, part in convention.encode(layer, settings).items():
        tensors[f"{module}.{name}"] = part
  header = getattr(convention, "header", None)
  return tensors, settings, header(tensors, settings, dtype) if header else {}


def require(
  config: StackConfig,
  schemes: Mapping[str, Choice],
  shapes: Mapping[str, tuple[int, ...]],
  method: str,
) -> None:
  """Raises ValueError if `method` has no place for parameters so held.

  Args:
    config: the model's.
    schemes: of parameters in few bits, by path.
    shapes: of all parameters.
    method: see `write`.
  """
  if method == OURS:
    return
  convention, table = interchange.find(method), _table(config)
  for path in shapes:
    if EXPERTS in path:
      raise ValueError(f"{path!r}: {method} has no place for experts; format 'native' has")
  first: tuple[str, Scheme] | None = None
  for path, scheme in schemes.items():
    if not isinstance(scheme, Scheme):
      raise ValueError(
        f"{path!r} is held in another way in some layers: {method} has one scheme for all; give one"
        " to all, or write format 'native'"
      )
    if not path.startswith("layers/"):
      raise ValueError(
        f'{path!r}: {method} holds projections of layers alone; "kind": "none" in a rule before the'
        " others leaves it as it is, and format 'native' holds it"
      )
    _require_whole(table[path], f"{method}, and format 'native' holds it")
    convention.require(path, scheme, shapes[path])
    first = first or (path, scheme)
    if scheme != first[1]:
      raise ValueError(
        f"{first[0]!r} is held as {told(first[1])}, {path!r} as {told(scheme)}: {method} has one"
        " scheme a model; give one to all, or write format 'native'"
      )


def _table(config):
  weights = scored.table(config, families.find(config.family).weights(config))
  return {weight.path: weight for weight in weights}


def _outside(table):
  """Modules outside layers that multiply by a matrix, by the endings of their names.

  Of what is tied, too: the head of a decoder, and of an encoder that predicts hidden tokens, where
  the module with the bias has it. Without the name of the base, which a bare one has not.
  """
  base = f"{next(iter(table.values())).name.partition('.')[0]}."
  names = [
    weight.name.rpartition(".")[0].removeprefix(base)
    for path, weight in table.items()
    if not path.startswith("layers/") and path.endswith(("/kernel", "masked_head/bias"))
  ]
  return list(dict.fromkeys(["lm_head", *names]))


def read(
  settings: Mapping[str, Any],
  table: Sequence[Weight],
  tensors: Tensors,
  shapes: Mapping[str, tuple[int, ...]],
  dtype: np.dtype,
) -> tuple[dict[str, QArray | Mixed], list[Weight], dict[str, np.ndarray]]:
  """Parameters in few bits, by path; and of all others the map and the tensors.

  Args:
    settings: the `quantization_config`.
    table: the family's map.
    tensors: those of the directory.
    shapes: our shape at every path.
    dtype: the type that parameters in few bits stand for.

  Raises:
    ValueError: the method is unknown, or tensors are missing or do not fit.
  """
  method = settings.get("quant_method", "")
  if method == OURS:
    found, rest = _read_ours(settings["held"], tensors)
    others = [Weight(path, path) for path in shapes if path not in found]
  else:
    found, rest = _read_theirs(method, settings, table, tensors, shapes)
    others = [weight for weight in table if weight.path not in found]
  for path, leaf in found.items():
    if leaf.shape != shapes.get(path):
      raise ValueError(f"{path!r} in few bits is {leaf.shape}, not {shapes.get(path)}")
    found[path] = _standing_for(leaf, dtype)
  return found, others, rest


def _standing_for(leaf, dtype):
  """A `QArray` or `Mixed` in the place of arrays of this type."""
  if isinstance(leaf, Mixed):
    return Mixed(tuple(_standing_for(part, dtype) for part in leaf.each))
  return leaf.replace(kind=str(dtype)) if isinstance(leaf, QArray) else leaf.astype(dtype)


def _read_ours(held, tensors):
  parts = {name for name in tensors if name.startswith(tuple(f"{path}/" for path in held))}
  arrays = files.from_arrays({name: tensors[name] for name in parts}, held)
  return matrix.flatten(arrays), {name: tensors[name] for name in tensors if name not in parts}


def _read_theirs(method, settings, table, tensors, shapes):
  convention = interchange.find(method)
  if settings.get("load_in_8bit"):
    raise ValueError("bitsandbytes of 8 bits is not read; nf4 and fp4 are")
  rest = {name: tensors[name] for name in tensors}
  found = {}
  for weight in table:
    path = weight.path
    if path not in shapes or not path.endswith("/kernel"):
      continue
    stack = shapes[path][: weight.stacks]
    modules = [_module(weight).format(*numbers) for numbers in np.ndindex(*stack)]
    marked = [f"{module}.{convention.MARK}" in rest for module in modules]
    if not any(marked):
      continue
    for module, is_marked in zip(modules, marked, strict=True):
      # Tools leave single modules as they are; a stack that a loop slices cannot.
      if not is_marked and (f"{module}.weight" not in rest or not path.startswith("layers/")):
        raise ValueError(f"{module} is in more bits than {path!r} of other layers, or not there")
    _require_whole(weight, f"{method} when it is read")
    layers = []
    for module, is_marked in zip(modules, marked, strict=True):
      if not is_marked:
        layers.append(jnp.asarray(rest.pop(f"{module}.weight")).T)
        continue
      parts = {
        part: rest.pop(f"{module}.{part}")
        for part in convention.PARTS
        if f"{module}.{part}" in rest
      }
      # Some tools store biases of zeros where the model has none.
      bias = f"{module}.bias"
      if path.replace("/kernel", "/bias") not in shapes and bias in rest and not rest[bias].any():
        rest.pop(bias)
      layers.append(convention.decode(parts, settings))
    found[path] = _stacked(path, layers) if weight.stacks else jax.tree.map(jnp.asarray, layers[0])
  if not found:
    raise ValueError(f"the directory is of {method}, and has no {convention.MARK} of a projection")
  return found, rest


def _stacked(path: str, layers: Sequence[QArray | jax.Array]) -> QArray | Mixed:
  """Layers of one form as one array; where some are arrays, each as it is."""
  if len({layer.shape for layer in layers}) > 1:
    raise ValueError(f"{path!r} has layers of several shapes")
  held = [layer for layer in layers if isinstance(layer, QArray)]
  if len(held) < len(layers):
    return Mixed(jax.tree.map(jnp.asarray, tuple(layers)))
  if any(layer.order is not None for layer in held):
    held = [_ordered(layer) for layer in held]
  for layer in held:
    if layer.scheme != held[0].scheme:
      raise ValueError(f"{path!r} is held in several ways, {held[0].scheme} and {layer.scheme}")
  return jax.tree.map(lambda *parts: jnp.stack(parts), *held)


def _ordered(layer):
  if layer.order is not None:
    return layer
  inputs = layer.shape[0]
  groups = np.arange(inputs, dtype=np.int32) // (layer.scheme.group or inputs)
  return layer.replace(order=groups)


def _module(weight):
  return weight.name.removesuffix(".weight")


def _require_whole(weight: Weight, whose: str) -> None:
  """Raises ValueError unless the parameter is the whole of a linear module."""
  if weight.part != (0, 1, 1) or not weight.transposed or EXPERTS in weight.path:
    raise ValueError(
      f"{weight.path!r} is no linear module of its own ({_module(weight)}), as it has to be for"
      f" {whose}"
    )


def _in_type(path, leaf, dtype):
  """A parameter whose arrays are of this type; `QArray`s are as they were."""
  if isinstance(leaf, Mixed):
    return Mixed(tuple(_in_type(path, part, dtype) for part in leaf.each))
  return leaf if isinstance(leaf, QArray) else _cast(path, leaf, dtype)


def _cast(path, leaf, dtype):
  with np.errstate(over="ignore"):
    narrow = leaf.astype(dtype)
  if not np.isfinite(narrow.astype(np.float32)).all():
    raise ValueError(f"{path!r} has numbers beyond {dtype}; give the type bfloat16 or float32")
  return narrow
