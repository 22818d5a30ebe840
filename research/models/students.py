"""Smaller models made from a larger one: some of its layers, heads and feed-forward units.

L layers, H heads, N kv heads, G = H / N, K head size, D model, M units of the feed-forward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import config as config_lib
from research.core import matrix, tree
from research.models import families
from research.models.config import DecoderConfig
from research.models.decoder import Decoder
from research.models.initialize import initialize
from research.quant import mixed

Tree = Any

CHOICES = ("magnitude", "first")


@dataclasses.dataclass(frozen=True)
class Cut:
  """What is left of a model's shape.

  layers: numbers of the layers that stay, in their order.
  heads, mlp_size: how many heads and units each layer keeps.
  """

  layers: tuple[int, ...]
  heads: int
  mlp_size: int


def build(
  section: Mapping[str, Any], model: Decoder, params: Tree, rng: jax.Array
) -> tuple[Decoder, Tree]:
  """The student that a config's section names, a key of `STUDENTS` with its arguments.

  Raises:
    ValueError: the section is wrong, the model is no decoder, or its family has no such shapes.
  """
  if not isinstance(model.config, DecoderConfig):
    raise ValueError(f"students are made from decoders, not from a {model.config.family}")
  student, params = config_lib.call(STUDENTS, section, model=model, params=params, rng=rng)
  family = families.find(student.config.family)
  saved = family.read_config(family.write_config(student.config))
  for name in ("num_layers", "num_heads", "num_kv_heads", "head_size", "mlp_size", "windows"):
    ours, theirs = getattr(student.config, name), getattr(saved, name)
    if ours != theirs:
      raise ValueError(
        f"a {student.config.family}'s config.json cannot say this shape: {name} {ours} would be"
        f" read as {theirs}"
      )
  return student, params


def sliced(
  *,
  model: Decoder,
  params: Tree,
  rng: jax.Array,
  layers: int | Sequence[int] | None = None,
  heads: int | None = None,
  mlp_size: int | None = None,
  by: str = "magnitude",
) -> tuple[Decoder, Tree]:
  """The model with a part of its own parameters; what is not told stays whole.

  Heads go by groups, all queries with the keys and values that they share; the width of the
  residual stream stays. Each layer chooses its own heads and units, which keep their order.

  Args:
    rng: of no use; a student of random weights draws by it.
    layers: how many, evenly from the first to the last, or the numbers of those that stay, from 0.
    heads: how many of a layer's, a multiple of those in a group.
    mlp_size: how many units of a layer's feed-forward.
    by: "magnitude" keeps those whose weights have the largest sum of squares, over all their
      projections; "first" the first ones.

  Raises:
    ValueError: there are not so many, or they cannot be told apart.
  """
  del rng
  if by not in CHOICES:
    raise ValueError(f"by {by!r} is none of {', '.join(CHOICES)}{tree.nearest(by, CHOICES)}")
  cut = _cut(model.config, layers, heads, mlp_size)
  params = take_layers(params, cut.layers)
  flat = matrix.flatten(params)
  if any(matrix.is_matrix(leaf) for leaf in flat.values()) and (heads or mlp_size):
    raise ValueError("heads and units are cut out of numbers; these parameters are in few bits")
  groups = cut.heads * model.config.num_kv_heads // model.config.num_heads
  for axes, kept in (
    (_head_axes(model.config), groups if heads else None),
    (_UNIT_AXES, cut.mlp_size if mlp_size else None),
  ):
    if kept is not None:
      flat = _thinned(flat, axes, kept, by)
  return model.clone(config=_config(model.config, cut)), tree.unflatten(flat)


def fresh(
  *,
  model: Decoder,
  params: Tree,
  rng: jax.Array,
  layers: int | None = None,
  heads: int | None = None,
  mlp_size: int | None = None,
) -> tuple[Decoder, Tree]:
  """A model of the shape that `sliced` gives, with random weights; its arguments are those."""
  del params
  smaller = model.clone(config=_config(model.config, _cut(model.config, layers, heads, mlp_size)))
  return smaller, initialize(smaller, rng)


STUDENTS: dict[str, Callable[..., tuple[Decoder, Tree]]] = {"fresh": fresh, "sliced": sliced}


def even(count: int, total: int) -> tuple[int, ...]:
  """`count` of the numbers from 0 to `total - 1`, evenly, the first and the last among them."""
  return tuple(int(number) for number in np.rint(np.linspace(0, total - 1, count)))


def with_layers(config: DecoderConfig, layers: Sequence[int]) -> DecoderConfig:
  """The shape with only the layers of these numbers, from 0, in this order.

  Raises:
    ValueError: there are none, or the model has no such layer.
  """
  count = config.num_layers
  if not layers:
    raise ValueError(f"no layers are left; the model has 0 to {count - 1}")
  for layer in layers:
    if not 0 <= layer < count:
      raise ValueError(f"there is no layer {layer}; the model has 0 to {count - 1}")
  windows = tuple(config.windows[i] for i in layers) if config.windows else ()
  return dataclasses.replace(config, num_layers=len(layers), windows=windows)


def take_layers(collection: Tree, layers: Sequence[int]) -> Tree:
  """Parameters or adapters with only these layers of their stacks."""
  return {
    part: mixed.take(nodes, layers) if part == "layers" else nodes
    for part, nodes in collection.items()
  }


def _cut(
  config: DecoderConfig,
  layers: int | Sequence[int] | None,
  heads: int | None,
  mlp_size: int | None,
) -> Cut:
  """Raises ValueError: see `sliced`."""
  if layers is None:
    layers = config.num_layers
  if isinstance(layers, int):
    if not 1 <= layers <= config.num_layers:
      raise ValueError(f"{layers} layers of a model that has {config.num_layers}")
    layers = even(layers, config.num_layers)
  if list(layers) != sorted(set(layers)):
    raise ValueError(f"layers {list(layers)} are not in ascending order, each once")
  with_layers(config, layers)
  group = config.num_heads // config.num_kv_heads
  if heads is not None and (not 1 <= heads <= config.num_heads or heads % group):
    raise ValueError(
      f"{heads} heads: a layer has {config.num_heads}, and {group} share keys and stay together"
    )
  if heads is not None and config.positions == "alibi":
    raise ValueError("heads of a model with alibi each see at a distance of their own; keep all")
  if mlp_size is not None and config.num_experts:
    raise ValueError("mlp_size is that of a plain feed-forward; this model has experts")
  if mlp_size is not None and not 1 <= mlp_size <= config.mlp_size:
    raise ValueError(f"mlp_size {mlp_size} of a model that has {config.mlp_size}")
  return Cut(tuple(layers), heads or config.num_heads, mlp_size or config.mlp_size)


def _config(config: DecoderConfig, cut: Cut) -> DecoderConfig:
  kv_heads = cut.heads * config.num_kv_heads // config.num_heads
  # The scale and the size of a head are what they were, whatever their number is.
  return dataclasses.replace(
    with_layers(config, cut.layers),
    num_heads=cut.heads,
    num_kv_heads=kv_heads,
    mlp_size=cut.mlp_size,
  )


# Paths of parameters `[L, ...]` of which an axis runs over units, that axis, and how many parts it
# has; -1 is as many as the axis is long.
_Axes = Mapping[str, tuple[int, int]]
_UNIT_AXES: _Axes = {
  "layers/mlp/gate_proj/kernel": (2, -1),
  "layers/mlp/up_proj/kernel": (2, -1),
  "layers/mlp/down_proj/kernel": (1, -1),
  "layers/mlp/gate_proj/bias": (1, -1),
  "layers/mlp/up_proj/bias": (1, -1),
}


def _head_axes(config: DecoderConfig) -> _Axes:
  """Projections are `[L, D, N * G * K]`, of keys and values `[L, D, N * K]`: N is the first."""
  count = config.num_kv_heads
  axes = {f"layers/attention/{name}_proj/kernel": (2, count) for name in "qkv"}
  axes |= {f"layers/attention/{name}_proj/bias": (1, count) for name in "qkv"}
  axes["layers/attention/o_proj/kernel"] = (1, count)
  if config.qk_norm == "projection":
    axes |= {f"layers/attention/{name}_norm/scale": (1, count) for name in "qk"}
  return axes


def _thinned(flat: Mapping[str, Any], axes: _Axes, kept: int, by: str) -> dict[str, Any]:
  """`flat` with `kept` of the parts of each of these axes, the same ones in all of a layer."""
  parts = {
    path: _parted(flat[path], axis, count) for path, (axis, count) in axes.items() if path in flat
  }
  layers, total = next(iter(parts.values())).shape[:2]
  if by == "first":
    chosen = jnp.broadcast_to(jnp.arange(kept), (layers, kept))
  else:
    sizes = sum(
      jnp.sum(jnp.square(part.astype(jnp.float32)).reshape(layers, total, -1), axis=-1)
      for path, part in parts.items()
      if path.endswith("/kernel")
    )
    chosen = jnp.sort(jax.lax.top_k(sizes, kept)[1], axis=-1)  # [L, kept]
  out = dict(flat)
  for path, part in parts.items():
    axis = axes[path][0]
    index = chosen.reshape(*chosen.shape, *(1,) * (part.ndim - 2))
    taken = jnp.moveaxis(jnp.take_along_axis(part, index, axis=1), 1, axis)
    shape = list(flat[path].shape)
    shape[axis] = shape[axis] * kept // total
    out[path] = taken.reshape(shape)
  return out


def _parted(array: jax.Array, axis: int, count: int) -> jax.Array:
  """`[L, ..., count * n, ...]` -> `[L, count, ..., n, ...]`."""
  count = array.shape[axis] if count == -1 else count
  shape = (*array.shape[:axis], count, array.shape[axis] // count, *array.shape[axis + 1 :])
  return jnp.moveaxis(array.reshape(shape), axis, 1)
