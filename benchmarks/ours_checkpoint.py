"""What a checkpoint of full fine-tuning costs the loop: float32 parameters and two moments."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from benchmarks import worker
from research import models
from research.io.checkpoint import Checkpoints


def main() -> None:
  """Saves again and again, and prints the share of it that the loop waits, as a line of JSON."""
  parser = worker.parser(__doc__)
  args = parser.parse_args()
  _, params, _ = models.load(args.model, param_dtype=jnp.float32)
  state = {"params": params, "moments": optax.adam(1e-4).init(params)}
  state = jax.block_until_ready(jax.tree.map(jnp.asarray, state))
  pauses: list[float] = []
  wholes: list[float] = []
  with tempfile.TemporaryDirectory() as scratch:
    checkpoints = Checkpoints(Path(scratch), keep_last=1)
    for step in range(args.warmup + args.steps):
      started = time.perf_counter()
      checkpoints.save(step, state, {})
      pauses.append(time.perf_counter() - started)
      checkpoints.wait()
      wholes.append(time.perf_counter() - started)
    checkpoints.close()
  shares = [pause / whole for pause, whole in zip(pauses, wholes, strict=True)][args.warmup :]
  worker.report(
    ("orbax-checkpoint",),
    pause_share=statistics.median(shares),
    pauses=pauses[args.warmup :],
    seconds=wholes[args.warmup :],
  )


if __name__ == "__main__":
  main()
