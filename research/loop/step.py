"""The train step: gradients by token weights, one update, sums and weights out.

A accumulation, B rows of the batch, S sequence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from research import peft, quant
from research.core import compile as compile_lib
from research.core import rng as rng_lib
from research.core import tree
from research.loop import flow
from research.loop.meta import Meta, by_tasks
from research.loop.slices import cut, summed
from research.loop.state import TrainState
from research.models.unrolled import can_unstack, unstack
from research.optim.schedules import Schedule

Sum = tuple[jax.Array, jax.Array]  # (sum, weight): the mean is their quotient
Objective = Callable[..., tuple[jax.Array, jax.Array, Mapping[str, Sum]]]
Step = Callable[[TrainState, Any, dict[str, jax.Array]], tuple[TrainState, dict[str, Any]]]


def arrange(
  model: Any, trainable: Any, frozen: Any, mesh: jax.sharding.Mesh, teacher: Any = None
) -> Any:
  """The frozen variables in the form that `make_step` runs fastest on.

  On a single CPU, where all layers are straight-line code, that is an array a layer for a base
  that does not train, and for a teacher. `models.unrolled.restack` undoes it for the base.
  """
  if mesh.devices.flat[0].platform != "cpu" or mesh.size > 1:
    return frozen
  if teacher is not None and _is_straight(teacher):
    frozen = {**frozen, "teacher": unstack(frozen["teacher"])}
  trains_layers = any(path.startswith("params/layers/") for path in tree.flatten(trainable))
  if trains_layers or not _is_straight(model):
    return frozen
  return unstack(frozen)


def _is_straight(model: Any) -> bool:
  """Whether all its layers are straight-line code, and can have their own arrays."""
  return can_unstack(model) and model.unroll in (0, model.config.num_layers)


class Program:
  """A step, compiled when it first meets a shape of batch.

  seconds: what compiling has taken so far.
  """

  def __init__(self, step: Step, out_shardings: Any = None, platform: str | None = None):
    """platform: what is compiled for, by default JAX's own."""
    self._step = jax.jit(
      step,
      donate_argnums=0,
      out_shardings=out_shardings,
      compiler_options=compile_lib.options(platform),
    )
    self._compiled: dict[Any, Step] = {}
    self.seconds = 0.0

  def __call__(
    self, state: TrainState, frozen: Any, batch: dict[str, jax.Array]
  ) -> tuple[TrainState, dict[str, Any]]:
    form = tuple((name, rows.shape) for name, rows in sorted(batch.items()))
    if form not in self._compiled:
      started = time.perf_counter()
      self._compiled[form] = self.trace(state, frozen, batch).lower().compile()
      self.seconds += time.perf_counter() - started
      compile_lib.settle()
    return self._compiled[form](state, frozen, batch)

  def trace(self, state: Any, frozen: Any, batch: Any) -> jax.stages.Traced:
    """The program of these arguments, or of their shapes, to be lowered and compiled."""
    return self._step.trace(state, frozen, batch)


def make_step(
  model: Any,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  schedule: Schedule,
  *,
  accumulate_steps: int,
  seed: int,
  meta: Meta | None = None,
  rows_per_example: int = 1,
  free: bool = False,
  layer_gradients: bool = False,
) -> Step:
  """`step(state, frozen, batch) -> (state, metrics)`, pure and ready for `jax.jit`.

  The gradient is that of (sum of losses) / (sum of weights) over the whole batch, whether it is
  taken at once or in `accumulate_steps` slices. An update whose loss or gradient is not finite is
  left out: parameters and moments stay as they are, and the counters of the state tell. Slices have
  whole examples, of `rows_per_example` neighbouring rows each.

  With `meta` the gradient is one of learning an initialization (`loop.meta`). What a method adds to
  the mean loss, once a step (`peft.penalty`), is the metric `penalty` and in no other. A step that
  is `free` trains what trains on a grid as if there were none.

  `metrics` holds `sums` (name -> (sum, weight): the loss, the objective's metrics), `counts`
  (`tokens`, of them `useful_tokens` that are no padding, and `context`, the sum over those of the
  tokens each one sees), `gradient_norm` (before the clip), `learning_rate`, `skipped_in_row` and
  `nonfinite`, a bool for each trainable leaf in tree order; with `layer_gradients` also
  `gradients`, the norms of `flow.norms` before the clip.
  """
  key = rng_lib.root(seed, "step")

  def sums_and_gradients(trainable: Any, frozen: Any, batch: Any, rng: Any, step: Any) -> Any:
    def loss(values: Any) -> tuple[jax.Array, Any]:
      variables = peft.materialize(tree.combine(values, frozen))
      variables = quant.free(variables) if free else variables
      total, weight, metrics = objective(model, variables, batch, rng, step)
      return total, {**metrics, "loss": (total, weight)}

    (_, sums), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
    return sums, gradients

  take = by_tasks(meta, sums_and_gradients) if meta else sums_and_gradients

  def step(
    state: TrainState, frozen: Any, batch: dict[str, jax.Array]
  ) -> tuple[TrainState, dict[str, Any]]:
    rng = rng_lib.at(key, state.step)
    if accumulate_steps == 1:
      sums, gradients = take(state.trainable, frozen, batch, rng, state.step)
    else:
      unit = meta.rows_per_task if meta else rows_per_example
      slices = {name: cut(rows, accumulate_steps, unit) for name, rows in batch.items()}
      sums, gradients = summed(take, state.trainable, frozen, slices, rng, state.step)
    total, weight = sums["loss"]
    # A batch without a single target has zero loss and gradients, not 0 / 0.
    divisor = jnp.where(weight == 0, 1.0, weight)
    gradients = jax.tree.map(lambda g: g.astype(jnp.float32) / divisor, gradients)
    penalty = peft.penalty(state.trainable)
    if penalty is not None:
      gradients = jax.tree.map(jnp.add, gradients, jax.grad(peft.penalty)(state.trainable))
      sums = {**sums, "penalty": (penalty, jnp.ones(()))}
    squares = [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradients)]
    nonfinite = ~jnp.isfinite(jnp.stack(squares))
    good = ~jnp.any(nonfinite) & jnp.isfinite(total)

    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)  # noqa: E731
    skipped_in_row = jnp.where(good, 0, state.skipped_in_row + 1)
    metrics = {
      "sums": sums,
      "counts": _counts(batch),
      "gradient_norm": jnp.sqrt(sum(squares)),
      "learning_rate": schedule(state.step - state.skipped),
      "skipped_in_row": skipped_in_row,
      "nonfinite": nonfinite,
    }
    if layer_gradients:
      metrics["gradients"] = flow.norms(gradients)
    state = TrainState(
      step=state.step + 1,
      trainable=keep(trainable, state.trainable),
      opt_state=keep(opt_state, state.opt_state),
      skipped=state.skipped + ~good,
      skipped_in_row=skipped_in_row,
    )
    return state, metrics

  return step


def _counts(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Token counts as float32: a row of 10^5 tokens has more context than int32 holds."""
  useful = batch["segments"] > 0
  seen = jnp.maximum(batch["positions"] + 1, batch.get("prefix", 0))
  if "source_tokens" in batch:
    useful = jnp.concatenate([useful, batch["source_segments"] > 0], axis=1)
    seen = jnp.concatenate([seen, batch["source_positions"] + 1], axis=1)
  return {
    "tokens": jnp.asarray(useful.size, jnp.float32),
    "useful_tokens": jnp.sum(useful, dtype=jnp.float32),
    "context": jnp.sum(jnp.where(useful, seen, 0), dtype=jnp.float32),
  }
