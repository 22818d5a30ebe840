"""Next-token prediction: pre-training, and supervised fine-tuning by the batch's weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.losses import cross_entropy

Tree = Any
Sums = Mapping[str, tuple[jax.Array, jax.Array]]
Loss = Callable[..., tuple[jax.Array, jax.Array, Sums]]


def causal(*, tasks: Sequence[str] = (), chunk_tokens: int = 256) -> Loss:
  """The loss `sum over t of weights[t] * -log p(targets[t] | tokens[..t])`, in nats.

  What counts (all tokens, or completions alone) is in the batch's weights.

  Args:
    tasks: names of the numbers in the batch's `task`; each has its own `loss/NAME` and
      `accuracy/NAME`.
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
    return of_hidden(model, variables, batch, hidden, rngs, tasks, chunk_tokens)

  return loss


def of_hidden(
  model: Any,
  variables: Tree,
  batch: Mapping[str, jax.Array],
  hidden: jax.Array,
  rngs: Mapping[str, jax.Array] | None,
  tasks: Sequence[str],
  chunk_tokens: int,
) -> tuple[jax.Array, jax.Array, Sums]:
  """What an objective of next tokens gives, from the model's last output `hidden [B, S, D]`.

  The other arguments are those of `causal` and of its loss.
  """
  total, losses, right = cross_entropy.chunked(
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
  metrics = {"loss": (total, weight), "accuracy": (right.sum(), weight)}
  for number, name in enumerate(tasks):
    here = batch["task"] == number
    count = jnp.sum(batch["weights"], where=here)
    metrics[f"loss/{name}"] = (jnp.sum(losses, where=here), count)
    metrics[f"accuracy/{name}"] = (jnp.sum(right, where=here), count)
  return total, weight, metrics
