"""Next-token prediction: pre-training, and supervised fine-tuning by the batch's weights."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from research.losses import cross_entropy

Tree = Any
Sums = Mapping[str, tuple[jax.Array, jax.Array]]
Loss = Callable[..., tuple[jax.Array, jax.Array, Sums]]


def causal(*, chunk_tokens: int = 512) -> Loss:
  """The loss `sum over t of weights[t] * -log p(targets[t] | tokens[..t])`, in nats.

  What counts (all tokens, or completions alone) is in the batch's weights.

  Args:
    chunk_tokens: tokens whose logits exist at one time, over the whole batch.
  """

  def loss(model, variables, batch, rng, step):
    del step
    rngs = None if rng is None else {"dropout": rng}
    hidden = model.apply(
      variables,
      batch["tokens"],
      batch["positions"],
      batch["segments"],
      prefix=batch.get("prefix"),
      method="hidden",
      rngs=rngs,
    )
    total, right = cross_entropy.chunked(
      lambda v, h: model.apply(v, h, method="head", rngs=rngs),
      {
        collection: {name: tree[name] for name in model.head_names if name in tree}
        for collection, tree in variables.items()
      },
      hidden,
      batch["targets"],
      batch["weights"],
      chunk_tokens=chunk_tokens,
    )
    weight = batch["weights"].sum()
    return total, weight, {"loss": (total, weight), "accuracy": (right, weight)}

  return loss
