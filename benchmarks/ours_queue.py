"""A queue of requests of unequal lengths: rows that are refilled at once, or batch after batch."""

from __future__ import annotations

import jax.numpy as jnp

from benchmarks import worker, workloads
from research import generation, models


def main() -> None:
  """Serves the requests and prints the figures as a line of JSON."""
  parser = worker.parser(__doc__)
  parser.add_argument("--rows", choices=("continuous", "static"), required=True)
  args = parser.parse_args()
  model, params, _ = models.load(args.model, dtype=jnp.bfloat16)
  variables = {"params": params}
  requests = [generation.Request(*pair) for pair in workloads.queue()]
  rows = workloads.QUEUE_ROWS
  wanted = sum(request.max_new_tokens for request in requests)

  def continuous() -> None:
    found = generation.serve(model, variables, requests, eos_ids=(), batch_size=rows)
    written = sum(len(completion.tokens) for completion in found)
    if written != wanted:
      raise RuntimeError(f"{written} tokens were written, {wanted} asked for")

  def static() -> None:
    # A batch writes until its longest completion is done; what is beyond a request's own is waste.
    for start in range(0, len(requests), rows):
      part = requests[start : start + rows]
      generation.generate(
        model,
        variables,
        [request.prompt for request in part],
        max_new_tokens=max(request.max_new_tokens for request in part),
        eos_ids=(),
        batch_size=rows,
      )

  step = continuous if args.rows == "continuous" else static
  seconds = worker.time_steps(step, warmup=args.warmup, steps=args.steps)
  worker.report(
    ("jax", "flax"), tokens_per_second=worker.median_rate(seconds, wanted), seconds=seconds
  )


if __name__ == "__main__":
  main()
