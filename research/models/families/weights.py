"""How a checkpoint's tensors map onto our parameters, as data."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from research.core import tree


@dataclasses.dataclass(frozen=True)
class Weight:
  """One parameter of ours, and the tensor that holds it or a part of it.

  path: our parameter, as in `layers/attention/q_proj/kernel`.
  name: the tensor, with `{}` for the number along each leading axis that stacks tensors: the
    layer, the expert.
  transposed: the tensor is `[out, in]` where ours is `[in, out]`.
  part: `(start, stop, total)`: ours is the units from `start` to `stop` of a tensor that fuses
    several parameters, along our last axis, `total` equal units long.
  heads: for GGUF's llama, whose query and key rows are reordered for rotation of adjacent
    pairs: the number of heads along our last axis. 0 means no reordering.
  offset: the tensor is ours plus this.
  """

  path: str
  name: str
  transposed: bool = False
  part: tuple[int, int, int] = (0, 1, 1)
  heads: int = 0
  offset: float = 0.0

  @property
  def stacks(self) -> int:
    """How many leading axes of our parameter stack tensors."""
    return self.name.count("{}")

  def read(self, tensor: np.ndarray) -> np.ndarray:
    """Our array of one layer, or of one expert of it, from the checkpoint's tensor."""
    if self.transposed:
      tensor = tensor.T
    start, stop, total = self.part
    if total > 1:
      unit = tensor.shape[-1] // total
      tensor = tensor[..., start * unit : stop * unit]
    if self.offset:
      tensor = tensor - self.offset
    if self.heads:
      pairs = tensor.reshape(*tensor.shape[:-1], self.heads, -1, 2)
      tensor = np.moveaxis(pairs, -1, -2).reshape(tensor.shape)
    return tensor

  def write(self, parts: Sequence[np.ndarray]) -> np.ndarray:
    """The inverse of `read`, on our arrays of all parts in order."""
    tensor = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    if self.heads:
      halves = tensor.reshape(*tensor.shape[:-1], self.heads, 2, -1)
      tensor = np.moveaxis(halves, -2, -1).reshape(tensor.shape)
    if self.offset:
      tensor = tensor + self.offset
    return np.ascontiguousarray(tensor.T if self.transposed else tensor)


def load(
  weights: Sequence[Weight],
  tensors: Mapping[str, np.ndarray],
  shapes: Mapping[str, tuple[int, ...]],
  *,
  dtype: np.dtype,
  ignore: Sequence[str] = (),
) -> dict[str, np.ndarray]:
  """`path -> array` in `dtype`, stacks allocated once and filled a layer at a time.

  Args:
    weights: the map; together it must cover `shapes`.
    tensors: the checkpoint, maybe lazy.
    shapes: our shape at every path.
    ignore: regular expressions of tensors that may be left over (buffers).

  Raises:
    ValueError: tensors are missing, left over, or of another shape; the message lists them.
  """
  uncovered = sorted(set(shapes) - {weight.path for weight in weights})
  if uncovered:
    raise ValueError(f"the checkpoint's family has no tensor for {', '.join(uncovered)}")
  weights = [weight for weight in weights if weight.path in shapes]
  needed = {name for weight in weights for name in _names(weight, shapes)}
  missing = sorted(needed - set(tensors))
  extra = sorted(
    name
    for name in set(tensors) - needed
    if not any(re.fullmatch(pattern, name) for pattern in ignore)
  )
  if missing or extra:
    raise ValueError(
      "; ".join(
        f"{len(names)} tensors {what}: {_few(names)}"
        for what, names in (("missing", missing), ("left over", extra))
        if names
      )
    )
  found, wrong = {}, []
  for weight in weights:
    shape = shapes[weight.path]
    array = np.empty(shape, dtype)
    each = array.reshape(-1, *shape[weight.stacks :])
    for target, name in zip(each, _names(weight, shapes), strict=True):
      value = weight.read(tensors[name])
      if value.shape != target.shape:
        wrong.append(f"{name} gives {value.shape} for {weight.path} {target.shape}")
      else:
        target[...] = value
    found[weight.path] = array
  if wrong:
    raise ValueError(f"{len(wrong)} tensors do not fit: {_few(wrong)}")
  return found


def save(weights: Sequence[Weight], params: tree.Tree) -> dict[str, np.ndarray]:
  """The checkpoint's tensors from our parameters; the inverse of `load`."""
  flat = {path: np.asarray(leaf) for path, leaf in tree.flatten(params).items()}
  shapes = {path: leaf.shape for path, leaf in flat.items()}
  grouped: dict[str, list[Weight]] = {}
  for weight in weights:
    if weight.path in flat:
      grouped.setdefault(weight.name, []).append(weight)
  tensors = {}
  for group in grouped.values():
    group = sorted(group, key=lambda weight: weight.part)
    each = [flat[w.path].reshape(-1, *flat[w.path].shape[w.stacks :]) for w in group]
    for name, *parts in zip(_names(group[0], shapes), *each, strict=True):
      tensors[name] = group[0].write(parts)
  return tensors


def _names(weight, shapes):
  stack = shapes[weight.path][: weight.stacks]
  return [weight.name.format(*numbers) for numbers in np.ndindex(*stack)]


def _few(names, most=6):
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + more
