"""Forward passes that tell what goes on inside: hidden states, and vectors of attention.

What watches is bound at taps (`research.nn.tap`); a model knows nothing of it.

L layers, B batch, S sequence, T keys (those of a prefix come before the row's), D model, H heads,
N kv heads, G = H / N, K head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core.products import matmul
from research.models.config import StackConfig
from research.nn.tap import OBSERVERS

Tree = Any


@struct.dataclass
class _Stream:
  """At `attention_out`: what each layer is given, `[L, B, S, D]`; before that of no size."""

  hidden: jax.Array

  def observe(self, *, stream: jax.Array, **_: Any) -> _Stream:
    return _Stream(stream)


@struct.dataclass
class _Vectors:
  """At `kv`: what attention goes by, after rotation; before that of no size."""

  queries: jax.Array  # [L, B, N, G, S, K]
  keys: jax.Array  # [L, B, N, T, K]
  values: jax.Array  # [L, B, N, T, K]
  mask: jax.Array  # bool [L, B, S, T]

  def observe(self, *, value: tuple[Any, ...], queries: jax.Array, **_: Any) -> _Vectors:
    keys, values, mask, _ = value
    return _Vectors(queries, keys, values, mask)


@dataclasses.dataclass(frozen=True)
class Watched:
  """A forward pass.

  output: the last norm's, `[B, S, D]`.
  """

  config: StackConfig
  output: jax.Array
  stream: _Stream | None
  vectors: _Vectors | None

  def hidden(self, number: int) -> jax.Array:
    """`[B, S, D]`: what layer `number` is given, and the output where that is L."""
    if number == self.config.num_layers:
      return self.output
    assert self.stream is not None, "hidden states were not asked for"
    return self.stream.hidden[number]

  def scores(self, layer: int) -> tuple[jax.Array, jax.Array]:
    """Float32 scores `[B, H, S, S]` before the softmax, scaled, and the mask `[B, S, S]`.

    Keys that an adapter puts in front are left out.
    """
    queries, keys, _, mask = self._of(layer)
    batch, kv_heads, group, length, size = queries.shape
    flat = queries.reshape(batch, kv_heads, group * length, size)
    scores = matmul(flat, keys[:, :, -length:], (3, 3), batch=2)
    scores = scores * (self.config.attention_scale or size**-0.5)
    if (cap := self.config.attention_softcap) is not None:
      scores = cap * jnp.tanh(scores / cap)
    return scores.reshape(batch, kv_heads * group, length, length), mask[..., -length:]

  def side_by_side(self, kind: str, layer: int) -> tuple[jax.Array, jax.Array]:
    """All heads' "queries", "keys" or "values", `[B, S, heads * K]`, and the mask `[B, S, S]`."""
    queries, keys, values, mask = self._of(layer)
    batch, _, _, length, size = queries.shape
    if kind == "queries":
      found = queries.reshape(batch, -1, length, size)
    else:
      found = (keys if kind == "keys" else values)[:, :, -length:]
    return found.swapaxes(1, 2).reshape(batch, length, -1), mask[..., -length:]

  def _of(self, layer: int) -> tuple[jax.Array, ...]:
    assert self.vectors is not None, "vectors of attention were not asked for"
    found = self.vectors
    return tuple(x[layer] for x in (found.queries, found.keys, found.values, found.mask))


def watch(
  model: Any,
  variables: Tree,
  batch: Mapping[str, jax.Array],
  *,
  hidden: bool,
  attention: bool,
  rngs: Mapping[str, jax.Array] | None = None,
) -> Watched:
  """A decoder's forward pass over whole rows, with what was asked for; differentiable.

  Args:
    batch: see docs/architecture.md.
    hidden: whether what layers are given is told.
    attention: whether queries, keys, values and masks are.
  """
  layers = model.config.num_layers
  nothing = jnp.zeros((layers, 0))
  sites: dict[str, Any] = {}
  if hidden:
    sites["attention_out"] = _Stream(nothing)
  if attention:
    sites["attention"] = {"kv": _Vectors(nothing, nothing, nothing, nothing)}
  found = model.apply(
    {**variables, OBSERVERS: {"layers": sites}} if sites else variables,
    batch["tokens"],
    batch["positions"],
    batch["segments"],
    prefix=batch.get("prefix"),
    method="hidden",
    rngs=rngs,
    mutable=[OBSERVERS] if sites else False,
  )
  if not sites:
    return Watched(model.config, found, None, None)
  output, seen = found[0], found[1][OBSERVERS]["layers"]
  vectors = seen["attention"]["kv"] if attention else None
  return Watched(model.config, output, seen["attention_out"] if hidden else None, vectors)
