"""Our side of sentence embeddings: `models.embed` in bfloat16, from texts to vectors."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from benchmarks import worker, workloads
from research import models


def main() -> None:
  """Embeds the texts and prints the figures as a line of JSON."""
  args = worker.parser(__doc__).parse_args()
  model, params, tokenizer = models.load(args.model, dtype=jnp.bfloat16)
  texts = workloads.texts()
  vectors: list[np.ndarray] = []
  seconds = worker.time_steps(
    lambda: vectors.append(models.embed(model, {"params": params}, tokenizer, texts)),
    warmup=args.warmup,
    steps=args.steps,
  )
  worker.report(
    ("jax", "flax"),
    items_per_second=worker.median_rate(seconds, len(texts)),
    seconds=seconds,
    first_vector=vectors[-1][0, :4].tolist(),
  )


if __name__ == "__main__":
  main()
