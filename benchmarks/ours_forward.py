"""A forward pass through all layers, in bfloat16, or with int8 weights and activations."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from benchmarks import config, worker, workloads
from research import models, quant
from research.models import unrolled


def main() -> None:
  """Times the pass over a batch and prints the figures as a line of JSON."""
  parser = worker.parser(__doc__)
  ways = ("int8_forward", "int8_outliers")
  parser.add_argument("--quantize", choices=ways, help="what layers' products are of")
  args = parser.parse_args()
  model, params, _ = models.load(args.model, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
  if args.quantize:
    params = quant.quantize(params, config.QUANTIZED[args.quantize])
  variables = unrolled.unstack({"params": params})
  tokens = workloads.random_tokens(workloads.FORWARD_BATCH, workloads.FORWARD_TOKENS)
  forward = jax.jit(lambda variables, tokens: model.apply(variables, tokens, method="hidden"))
  outputs: list[jax.Array] = []
  seconds = worker.time_steps(
    lambda: outputs.append(jax.block_until_ready(forward(variables, tokens))),
    warmup=args.warmup,
    steps=args.steps,
  )
  worker.report(
    ("jax", "flax"),
    tokens_per_second=worker.median_rate(seconds, tokens.size),
    seconds=seconds,
    first_vector=outputs[-1][0, -1, :4].astype(jnp.float32).tolist(),
  )


if __name__ == "__main__":
  main()
