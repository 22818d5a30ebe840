"""How long the LoRA step takes to compile where a model of so many layers is one compiled loop.

Nothing is allocated: shapes are compiled for, of SmolLM2-135M's layers.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from benchmarks import config as settings
from benchmarks import worker, workloads
from research import models, objectives, peft
from research.core import config as config_lib
from research.core import tree
from research.loop import state as state_lib
from research.loop import step as step_lib
from research.optim import build as optim


def main() -> None:
  """Compiles once, and prints the seconds as a line of JSON."""
  parser = worker.parser(__doc__)
  parser.add_argument("--layers", type=int, required=True)
  args = parser.parse_args()
  shown, _, _ = models.load(args.model)
  config = dataclasses.replace(shown.config, num_layers=args.layers)
  model = shown.clone(config=config, unroll=1, dtype=jnp.bfloat16)
  rows = jax.ShapeDtypeStruct((workloads.STEP_BATCH, workloads.STEP_TOKENS), jnp.int32)
  key = jax.random.key(0)

  def variables():
    params = model.init(key, jnp.zeros(rows.shape, jnp.int32))["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    return {"params": params, "adapters": peft.attach(settings.METHODS["lora"], params, key)}

  trainable, frozen = tree.partition(
    jax.eval_shape(variables), lambda path, _: path.endswith(("/a", "/b"))
  )
  section = config_lib.Config(settings.get_config(str(args.model))).optimizer
  optimizer, schedule = optim.build(section, trainable, 10)
  step = step_lib.make_step(
    model,
    objectives.build({"name": "causal"}),
    optimizer,
    schedule,
    accumulate_steps=1,
    seed=0,
  )
  names = ("tokens", "targets", "segments", "positions")
  batch = {**dict.fromkeys(names, rows), "weights": rows.update(dtype=jnp.float32)}
  program = jax.jit(step, donate_argnums=0)
  seconds = worker.time_steps(
    lambda: program.lower(state_lib.abstract(trainable, optimizer), frozen, batch).compile(),
    warmup=0,
    steps=1,
  )
  worker.report(("jax", "flax"), compile_seconds=seconds[0], seconds=seconds)


if __name__ == "__main__":
  main()
