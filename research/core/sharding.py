"""Where arrays live: a path gives logical axes, logical axes give mesh axes.

Both tables are here and nowhere else. The mesh has four axes; on one device all have size 1 and
nothing below changes a number.

  data      rows of the batch; parameters are copied
  fsdp      rows of the batch; parameters are split (experts by their number), and gathered
            where used
  tensor    heads, the MLP's width, the vocabulary
  sequence  positions within a row
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.core import tree
from research.core.matrix import parameter_of

MESH_AXES = ("data", "fsdp", "tensor", "sequence")

# Path of a parameter within its collection -> its logical axes; the first match counts. Both sides
# of an encoder-decoder are as a decoder.
_PARAMETERS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
  (r"embed/embedding", ("vocab", "embed")),
  (r"(positions|token_types)/embedding", (None, "embed")),
  (r"lm_head/kernel", ("embed", "vocab")),
  (r"lm_head/bias", ("vocab",)),
  (r"layers/(cross_)?attention/[qkv]_proj/kernel", ("layers", "embed", "heads")),
  (r"layers/(cross_)?attention/[qkv]_proj/bias", ("layers", "heads")),
  (r"layers/(cross_)?attention/o_proj/kernel", ("layers", "heads", "embed")),
  (r"layers/mlp/(gate|up)_proj/kernel", ("layers", "embed", "mlp")),
  (r"layers/mlp/(gate|up)_proj/bias", ("layers", "mlp")),
  (r"layers/mlp/down_proj/kernel", ("layers", "mlp", "embed")),
  (r"layers/mlp/router/kernel", ("layers", "embed", None)),
  (r"layers/mlp/experts/(gate|up)_proj/kernel", ("layers", "experts", None, "mlp")),
  (r"layers/mlp/experts/down_proj/kernel", ("layers", "experts", "mlp", None)),
  (r"layers/.*(norm/scale|norm/bias|_proj/bias)", ("layers", None)),
  (r"(final_norm|embed_norm|masked_head/norm)/(scale|bias)", (None,)),
  (r"(pooler|masked_head/transform|classifier/(dense|out))/kernel", ("embed", None)),
  (r"(pooler|masked_head/transform|classifier/(dense|out))/bias", (None,)),
  (r"masked_head/bias", ("vocab",)),
  (r"score/kernel", ("embed", None)),
  (r"relative_bias/embedding", (None, None)),
)

# Logical axis -> mesh axes. An axis that is not here is not split.
_MESH: dict[str, tuple[str, ...]] = {
  "batch": ("data", "fsdp"),
  "embed": ("fsdp",),
  "experts": ("fsdp",),
  "heads": ("tensor",),
  "mlp": ("tensor",),
  "sequence": ("sequence",),
  "vocab": ("tensor",),
}

_COLLECTION = re.compile(r"(?:.*/)?(params|adapters)/(.*)")


def make_mesh(sizes: Mapping[str, int]) -> Mesh:
  """A mesh over all devices.

  Args:
    sizes: devices along each of `MESH_AXES`; at most one may be -1, which takes what is left.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  counts = {axis: sizes[axis] for axis in MESH_AXES}
  devices = jax.device_count()
  free = [axis for axis, count in counts.items() if count == -1]
  taken = 1
  for axis, count in counts.items():
    taken *= 1 if axis in free else count
  if len(free) == 1 and taken > 0 and devices % taken == 0:
    counts[free[0]] = devices // taken
  elif free or taken != devices:
    told = ", ".join(f"{axis}={count}" for axis, count in counts.items())
    raise ValueError(f"mesh {told} does not fit {devices} devices; one axis may be -1")
  # Auto: the compiler propagates shardings; the model's code does not name mesh axes.
  types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  return jax.make_mesh(tuple(counts.values()), MESH_AXES, axis_types=types)


def shardings(mesh: Mesh, shapes: Any) -> Any:
  """A tree of shardings like `shapes`, for parameters, adapters, optimizer states or all of them.

  A leaf's axes follow from the part of its path after `params/` or `adapters/`, so that the
  moments of a parameter lie where the parameter does. Adapters follow what they adapt where they
  share an axis with it (LoRA's `a` and `b`) and are copied elsewhere; so are counters, and scales
  of what is held in few bits.

  Raises:
    ValueError: a parameter that no rule covers, or an axis that its mesh axes do not divide.
  """
  return tree.map_with_path(lambda path, leaf: _sharding(mesh, path, leaf), shapes)


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
  """The sharding of a batch's `[B, S, ...]` or `[B]` array."""
  axes = ("batch", "sequence")[:ndim]
  return NamedSharding(mesh, PartitionSpec(*(_MESH[axis] for axis in axes)))


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def _sharding(mesh: Mesh, path: str, leaf: Any) -> NamedSharding:
  spec = [_MESH.get(axis) if axis else None for axis in _logical_axes(path, leaf)]
  for size, axes in zip(leaf.shape, spec, strict=True):
    split = 1
    for axis in axes or ():
      split *= mesh.shape[axis]
    if size % split:
      raise ValueError(f"{path} {leaf.shape}: {size} does not divide among {axes} = {split}")
  return NamedSharding(mesh, PartitionSpec(*spec))


def _logical_axes(path: str, leaf: Any) -> tuple[str | None, ...]:
  none = (None,) * leaf.ndim
  found = _COLLECTION.fullmatch(path)
  if not found:
    return none
  collection, within = found.groups()
  if collection == "adapters":
    target, _, part = within.rpartition("/")
    axes = _parameter_axes(target)
    if axes is None or part not in ("a", "b") or leaf.ndim != len(axes):
      return none
    return (*axes[:-1], None) if part == "a" else (*axes[:-2], None, axes[-1])
  whole = parameter_of(within)
  axes = _parameter_axes(whole)
  if whole != within and axes is not None:
    # A part of a kernel in few bits: codes are the kernel's in another length.
    part = within.removeprefix(f"{whole}/")
    return axes if part in ("codes", "values") else none
  if axes is None or len(axes) != leaf.ndim:
    raise ValueError(f"no sharding rule for {path} {leaf.shape}; add one to core/sharding.py")
  return axes


def _parameter_axes(path: str) -> tuple[str | None, ...] | None:
  path = re.sub(r"^(en|de)coder/", "", path)
  for pattern, axes in _PARAMETERS:
    if re.fullmatch(pattern, path):
      return axes
  return None
