"""What lies in each device's memory during a step, by kind."""

from __future__ import annotations

from typing import Any

import jax

from research import peft
from research.core import tree
from research.loop.problem import Problem
from research.loop.program import Arranged

# Collections of variables whose kind is not their own name.
_KINDS = {"params": "parameters", "objective": "parameters"}


def held(arranged: Arranged, batch: Any) -> dict[str, float]:
  """Bytes a device of what goes into a step, by kind, without the padding of layouts.

  Args:
    arranged: whose frozen variables are shapes with shardings.
    batch: shapes with shardings.
  """
  found: dict[str, float] = {"parameters": 0.0, "adapters": 0.0, "optimizer": 0.0}
  state = arranged.shapes
  for shapes, places in (
    (state.trainable, arranged.shardings.trainable),
    (arranged.frozen, jax.tree.map(lambda leaf: leaf.sharding, arranged.frozen)),
  ):
    sizes = tree.flatten(jax.tree.map(_shard, shapes, places))
    for path, size in sizes.items():
      name = path.split("/")[0]
      kind = _KINDS.get(name, name)
      found[kind] = found.get(kind, 0.0) + size
  moments = jax.tree.map(_shard, state.opt_state, arranged.shardings.opt_state)
  found["optimizer"] = sum(jax.tree.leaves(moments))
  found["batch"] = sum(_shard(leaf, leaf.sharding) for leaf in batch.values())
  return found


def _shard(leaf: Any, place: Any) -> float:
  size = leaf.dtype.itemsize
  for axis in place.shard_shape(leaf.shape):
    size *= axis
  return float(size)


def gradients(arranged: Arranged) -> float:
  """Bytes a device of the gradients of what trains, float32, split as that is."""
  sizes = jax.tree.map(_shard, arranged.shapes.trainable, arranged.shardings.trainable)
  return sum(jax.tree.leaves(sizes))


def activations(task: Problem, arranged: Arranged, batch: Any, accumulate_steps: int) -> float:
  """Bytes a device of what the forward pass keeps for the backward one, by JAX's own account.

  All of it is taken to be split as the batch is, by rows and positions; what `tensor` splits
  further counts whole.
  """
  mesh = arranged.mesh
  rows = {
    name: jax.ShapeDtypeStruct((leaf.shape[0] // accumulate_steps, *leaf.shape[1:]), leaf.dtype)
    for name, leaf in batch.items()
  }

  def kept(trainable: Any, frozen: Any, batch: Any, key: Any) -> list[jax.Array]:
    def loss(values: Any) -> Any:
      variables = peft.materialize(tree.combine(values, frozen))
      return task.objective(task.model, variables, batch, key, 0)[0]

    _, backward = jax.vjp(loss, trainable)
    given = {id(leaf) for leaf in jax.tree.leaves((trainable, frozen, batch))}
    return [leaf for leaf in jax.tree.leaves(backward) if id(leaf) not in given]

  key = jax.eval_shape(lambda: jax.random.key(0))
  with jax.set_mesh(mesh):
    found = jax.eval_shape(kept, arranged.shapes.trainable, arranged.frozen, rows, key)
  ways = mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["sequence"]
  return sum(leaf.size * leaf.dtype.itemsize for leaf in found) / ways
