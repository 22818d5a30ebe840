"""What a step changes: parameters in training, their moments and a few counters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from research.core import config as config_lib
from research.core import matrix, sharding, tree


@struct.dataclass
class TrainState:
  """Everything that a step replaces; saved whole in a checkpoint.

  step = updates made + `skipped`. `trainable` is the tree of all variables with None where
  frozen; its leaves and `opt_state`'s moments are float32 (what trains needs the bits even where
  the frozen base is bfloat16).
  """

  step: jax.Array  # int32: batches seen
  trainable: Any
  opt_state: Any
  skipped: jax.Array  # int32: updates left out because a gradient was not finite
  skipped_in_row: jax.Array  # int32: how many of the last updates were, without a break


def trains(
  section: Sequence[str],
  variables: Any,
  adapter_trains: Callable[[str, Any], bool],
  always: Collection[str] = (),
) -> Callable[[str, Any], bool]:
  """The predicate over `variables` (paths `params/...`, `adapters/...`) that splits them.

  What an objective learns (`objective/...`) trains always, and other collections never.

  Args:
    section: any of `"adapters"` (what of them is not constant), `"all"` (every parameter, and
      the adapters), and regular expressions over the paths of parameters.
    adapter_trains: whether an adapter's leaf is more than a constant.
    always: paths of parameters that train in any case.

  Raises:
    ConfigError: a pattern that matches nothing, nothing to train, or a parameter that cannot be
      trained because it is not of floating point.
  """
  params = {p: leaf for p, leaf in tree.flatten(variables).items() if p.startswith("params/")}
  patterns = [(p, True) for p in section if p not in ("adapters", "all")]
  with config_lib.blaming("trainable"):
    chosen = {f"params/{p}" for p in tree.first_match(patterns, [_within(p) for p in params])}
  chosen |= {f"params/{path}" for path in always}
  if "all" in section:
    chosen = set(params)
  for path in chosen:
    # Of what is in few bits its scales alone have a derivative, and not that of its `inputs`.
    if not jnp.issubdtype(params[path].dtype, jnp.floating) or path.endswith("/inputs"):
      what = _within(matrix.parameter_of(path))
      raise config_lib.ConfigError(
        f"config.trainable: {what!r} is held in few bits and cannot be trained; its scales can"
        " ('.*/kernel/scale'), adapters on it, or its numbers (research.export --format=hf)"
      )
  with_adapters = "adapters" in section or "all" in section

  def predicate(path: str, leaf: Any) -> bool:
    if path.startswith("objective/"):
      return True
    if path.startswith("params/"):
      return path in chosen
    if not path.startswith("adapters/"):
      return False
    return with_adapters and adapter_trains(_within(path), leaf)

  if not any(predicate(path, leaf) for path, leaf in tree.flatten(variables).items()):
    raise config_lib.ConfigError(
      f"config.trainable = {tuple(section)} leaves nothing to train"
      + ("; config.adapters is empty" if "adapters" in section else "")
    )
  return predicate


def create(
  trainable: Any, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
  """The state before the first step, each leaf where `core.sharding` puts it."""
  out = sharding.shardings(mesh, abstract(trainable, optimizer))
  return jax.jit(lambda values: _initial(values, optimizer), out_shardings=out)(trainable)


def count(trainable: Any) -> int:
  """How many numbers learn; what was measured for them (`quant.Trained.inputs`) does not."""
  leaves = tree.flatten(trainable).items()
  return sum(leaf.size for path, leaf in leaves if not matrix.MEASURED.fullmatch(path))


def abstract(trainable: Any, optimizer: optax.GradientTransformation) -> TrainState:
  """The shapes and types of `create`'s result; nothing is computed."""
  return jax.eval_shape(lambda values: _initial(values, optimizer), trainable)


def _initial(trainable: Any, optimizer: optax.GradientTransformation) -> TrainState:
  trainable = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trainable)
  zero = jnp.zeros((), jnp.int32)
  return TrainState(zero, trainable, optimizer.init(trainable), zero, zero)


def _within(path: str) -> str:
  """The path inside its collection."""
  return path.partition("/")[2]
