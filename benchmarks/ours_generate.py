"""Our side of generation: greedy, in bfloat16, prefill and decoding in one compiled loop."""

from __future__ import annotations

import jax.numpy as jnp

from benchmarks import worker, workloads
from research import generation, models
from research.core import memory


def main() -> None:
  """Generates again and again and prints the figures as a line of JSON."""
  parser = worker.parser(__doc__)
  parser.add_argument("--batch", type=int, required=True, help="prompts generated together")
  args = parser.parse_args()
  model, params, _ = models.load(args.model, dtype=jnp.bfloat16)
  prompts = workloads.random_tokens(args.batch, workloads.PROMPT_TOKENS).tolist()
  outputs = []

  def step() -> None:
    # Nothing ends a completion, so that both sides generate all tokens asked for.
    outputs.append(
      generation.generate(
        model,
        {"params": params},
        prompts,
        max_new_tokens=workloads.NEW_TOKENS,
        eos_ids=(),
        batch_size=args.batch,
      )
    )

  seconds = worker.time_steps(step, warmup=args.warmup, steps=args.steps)
  lengths = {len(completion.tokens) for completion in outputs[-1]}
  if (len(outputs[-1]), lengths) != (args.batch, {workloads.NEW_TOKENS}):
    raise RuntimeError(f"{len(outputs[-1])} completions of {lengths} tokens")
  worker.report(
    ("jax", "flax"),
    peak_bytes=memory.peak_bytes(),
    tokens_per_second=worker.median_rate(seconds, args.batch * workloads.NEW_TOKENS),
    seconds=seconds,
    completion=outputs[-1][0].tokens,
  )


if __name__ == "__main__":
  main()
