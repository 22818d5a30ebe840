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

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
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

# For `constrain`: an axis that the compiler may split as it likes.
FREE = PartitionSpec.UNCONSTRAINED

# Larger arrays that are split among processes come to each a layer at a time.
_GATHERED_BYTES = 2**28

# Numbers of each group of what is held in few bits.
_OF_GROUPS = re.compile(r".*/(kernel|embedding)/(each/\d+/)?(scale(/codes)?|zero)")

# Of a stack whose layers are held each in its own way, one layer.
_OF_LAYER = re.compile(r"each/\d+/?")

_COLLECTION = re.compile(r"(?:.*/)?(params|adapters)/(.*)")


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh over all devices.

  Args:
    sizes: devices along each of `MESH_AXES`; at most one may be -1, which takes what is left.
    devices: other ones, such as those of a topology that is compiled for; by default JAX's.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  counts = {axis: sizes[axis] for axis in MESH_AXES}
  total = jax.device_count() if devices is None else len(devices)
  free = [axis for axis, count in counts.items() if count == -1]
  taken = 1
  for axis, count in counts.items():
    taken *= 1 if axis in free else count
  if len(free) == 1 and taken > 0 and total % taken == 0:
    counts[free[0]] = total // taken
  elif free or taken != total:
    told = ", ".join(f"{axis}={count}" for axis, count in counts.items())
    raise ValueError(f"mesh {told} does not fit {total} devices; one axis may be -1")
  # Auto: the compiler propagates shardings; the model's code does not name mesh axes.
  types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  # An axis of the mesh may be part of one of the machine's.
  placed = mesh_utils.create_device_mesh(
    tuple(counts.values()), devices, allow_split_physical_axes=True
  )
  return Mesh(placed, MESH_AXES, axis_types=types)


def shardings(mesh: Mesh, shapes: Any) -> Any:
  """A tree of shardings like `shapes`, for parameters, adapters, optimizer states or all of them.

  A leaf's axes follow from the part of its path after `params/` or `adapters/`, so that the
  moments of a parameter lie where the parameter does. Adapters follow what they adapt where they
  share an axis with it (LoRA's `a` and `b`) and are copied elsewhere; so are counters. Scales of
  what is held in few bits lie where it does, along axes that divide them.

  Raises:
    ValueError: a parameter that no rule covers, or an axis that its mesh axes do not divide.
  """
  return tree.map_with_path(lambda path, leaf: _sharding(mesh, path, leaf), shapes)


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
  """The sharding of a batch's `[B, S, ...]` or `[B]` array."""
  axes = ("batch", "sequence")[:ndim]
  return NamedSharding(mesh, PartitionSpec(*(_MESH[axis] for axis in axes)))


def share_of_process(mesh: Mesh) -> tuple[int, int]:
  """Which share of a batch's rows this process reads, and how many shares there are.

  Processes whose devices have the same rows (they split heads or positions) read the same share.

  Raises:
    ValueError: the mesh gives processes rows that overlap without being the same.
  """
  blocks = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
  held: dict[int, set[int]] = {}
  for block, devices in enumerate(blocks):
    for device in devices:
      held.setdefault(device.process_index, set()).add(block)
  shares = sorted({tuple(sorted(found)) for found in held.values()})
  if sum(map(len, shares)) != len(blocks) or len(set(map(len, shares))) > 1:
    told = ", ".join(f"{axis}={count}" for axis, count in mesh.shape.items())
    raise ValueError(
      f"mesh {told} splits rows across {len(held)} processes unevenly; let data * fsdp be a"
      " multiple or a divisor of their number"
    )
  return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)


def place(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
  """This process's share of a batch, `[B', S, ...]` or `[B']`, on the mesh: `[B, S, ...]`."""
  _, shares = share_of_process(mesh)
  return {
    name: jax.make_array_from_process_local_data(
      batch_sharding(mesh, rows.ndim), rows, (len(rows) * shares, *rows.shape[1:])
    )
    for name, rows in batch.items()
  }


def fetched(values: Any, *, keep: bool = True) -> Any:
  """A tree's arrays as NumPy arrays, whole on this process; all processes have to call it.

  What lies on several processes comes one array after the other, and a large stack a layer at a
  time: no device has more than that whole, so that a model which fits because it is split comes,
  too.

  Args:
    keep: False: this process takes part, and has None in place of each array.
  """
  return jax.device_get(jax.tree.map(lambda leaf: _of_processes(leaf, keep), values))


@contextlib.contextmanager
def on_host() -> Iterator[None]:
  """Within, this process computes alone, on its CPU if JAX has it, else on its first device."""
  try:
    device = jax.local_devices(backend="cpu")[0]
  except RuntimeError:  # JAX was told of other platforms alone
    device = jax.local_devices()[0]
  mesh = make_mesh(dict.fromkeys(MESH_AXES, 1), [device])
  with jax.default_device(device), jax.set_mesh(mesh):
    yield


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def platform() -> str:
  """What is traced for: the platform of the mesh that is set, or JAX's own."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def is_spread() -> bool:
  """Whether what is traced now is for several devices: within `jax.set_mesh` of such a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.size > 1


def parts(axis: str) -> int:
  """Among how many devices a logical axis is split where a program is traced; 1 without a mesh."""
  if not is_spread():
    return 1
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[name] for name in _MESH[axis])


def split_axes() -> frozenset[str]:
  """The mesh axes of more than one device, where a program is traced."""
  shape = jax.sharding.get_abstract_mesh().shape
  return frozenset(name for name, size in shape.items() if size > 1)


def spec(x: jax.Array, *axes: Any) -> PartitionSpec:
  """Where these logical axes of `x` live on the mesh that a program is traced with.

  Only `split_axes` are named.

  Args:
    axes: a logical axis each, of which one whose length the mesh does not divide is not split; None
      for one that is not; or `FREE`.
  """
  found: list[Any] = []
  for size, axis in zip(x.shape, axes, strict=True):
    if isinstance(axis, str):
      divides = size % parts(axis) == 0
      names = tuple(name for name in _MESH[axis] if name in split_axes())
      found.append(names if divides and names else None)
    else:
      found.append(axis)
  return PartitionSpec(*found)


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
  """`x` with its axes where these logical axes live, see `spec`, where `is_spread`.

  The compiler spreads what follows from parameters and batch by itself, and guesses where both
  claim a mesh axis. What is told here: activations stay with their rows and tokens, and parameters
  come to them.
  """
  return jax.lax.with_sharding_constraint(x, spec(x, *axes)) if is_spread() else x


def _of_processes(leaf: Any, keep: bool) -> Any:
  """`leaf` as an array that is whole on this process, or None."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    leaf = leaf.addressable_data(0) if leaf.is_fully_replicated else _gathered(leaf, keep)
  return leaf if keep else None


def _gathered(leaf: jax.Array, keep: bool) -> np.ndarray | None:
  """All of an array that is split among processes, if it is kept; each waits for the others."""
  whole = replicated(leaf.sharding.mesh)  # type: ignore[attr-defined]  # all is split by name
  layers, *of_layer = leaf.sharding.shard_shape(leaf.shape)
  if leaf.nbytes <= _GATHERED_BYTES or layers < len(leaf) or len(of_layer) < 2:
    found = jax.block_until_ready(jax.device_put(leaf, whole))
    return np.asarray(found.addressable_data(0)) if keep else None
  take = jax.jit(_layer, out_shardings=whole)
  stack = np.empty(leaf.shape, leaf.dtype) if keep else None
  for number in range(layers):
    layer = jax.block_until_ready(take(leaf, number)).addressable_data(0)
    if stack is not None:
      stack[number] = layer
  return stack


def _layer(stack: jax.Array, number: int) -> jax.Array:
  return jax.lax.dynamic_index_in_dim(stack, number, keepdims=False)


def _sharding(mesh: Mesh, path: str, leaf: Any) -> NamedSharding:
  spec = [_MESH.get(axis) if axis else None for axis in _logical_axes(path, leaf)]
  ways = [math.prod(mesh.shape[axis] for axis in axes or ()) for axes in spec]
  if _OF_GROUPS.fullmatch(path):
    split_evenly = [size % split == 0 for size, split in zip(leaf.shape, ways, strict=True)]
    spec = [axes if even else None for axes, even in zip(spec, split_evenly, strict=True)]
    return NamedSharding(mesh, PartitionSpec(*spec))
  for size, split, axes in zip(leaf.shape, ways, spec, strict=True):
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
    if layer := _OF_LAYER.match(part):
      axes, part = axes[1:], part[layer.end() :]
    placed = part in ("", "codes", "values") or _OF_GROUPS.fullmatch(path)
    return axes if placed and len(axes) == leaf.ndim else none
  if axes is None or len(axes) != leaf.ndim:
    raise ValueError(f"no sharding rule for {path} {leaf.shape}; add one to core/sharding.py")
  return axes


def _parameter_axes(path: str) -> tuple[str | None, ...] | None:
  path = re.sub(r"^(en|de)coder/", "", path)
  for pattern, axes in _PARAMETERS:
    if re.fullmatch(pattern, path):
      return axes
  return None
