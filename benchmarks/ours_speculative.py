"""Greedy generation at batch 1, plain or with the model's own first layers as a draft."""

from __future__ import annotations

import jax.numpy as jnp

from benchmarks import worker, workloads
from research import generation, models
from research.data import chat


def main() -> None:
  """Writes with or without a draft and prints the figures as a line of JSON."""
  parser = worker.parser(__doc__)
  parser.add_argument("--draft", action="store_true", help="speculate")
  args = parser.parse_args()
  model, params, tokenizer = models.load(args.model, dtype=jnp.bfloat16)
  variables = {"params": params}
  prompt = chat.encode_prompt(tokenizer, [{"role": "user", "content": workloads.DRAFTED_PROMPT}])
  draft = generation.drop_layers(model, variables, workloads.DRAFT_LAYERS)
  arguments = {"max_new_tokens": workloads.NEW_TOKENS, "eos_ids": ()}
  told = {}

  def plain() -> None:
    generation.generate(model, variables, [prompt], **arguments)

  def drafted() -> None:
    found = generation.speculate(
      model,
      variables,
      [prompt],
      draft=draft,
      draft_tokens=workloads.DRAFT_TOKENS,
      **arguments,
    )
    told.update(acceptance=found.acceptance, tokens_per_pass=found.tokens_per_pass)

  step = drafted if args.draft else plain
  seconds = worker.time_steps(step, warmup=args.warmup, steps=args.steps)
  rate = worker.median_rate(seconds, workloads.NEW_TOKENS)
  worker.report(("jax", "flax"), tokens_per_second=rate, seconds=seconds, **told)


if __name__ == "__main__":
  main()
