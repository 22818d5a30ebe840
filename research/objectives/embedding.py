"""Texts whose vectors shall be near: in-batch negatives.

B rows, each an example; S tokens of a row; D features; N candidates.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from research.losses import cross_entropy
from research.models.embeddings import mean_pool, normalize
from research.objectives import tokens
from research.objectives.tokens import Loss

ANCHOR, POSITIVE, NEGATIVE = 1, 2, 3  # the batch's `roles`


def embedding(*, tasks: Sequence[str] = (), temperature: float = 0.05) -> Loss:
  """InfoNCE (van den Oord et al. 2018): of all texts of the batch, which is the anchor's positive?

  Texts are means of hidden states; scores are cosines over `temperature`, and candidates are all
  positives and all negatives of the batch, or of the slice where gradients accumulate. That is
  sentence-transformers' MultipleNegativesRankingLoss at a scale of `1 / temperature`.

  Args:
    tasks: not supported: candidates of other tasks would be no negatives.
  """
  if temperature <= 0:
    raise ValueError(f"objective.temperature is above 0, not {temperature}")
  if tasks:
    raise ValueError("the objective 'embedding' has no metrics of tasks; name none in the mixture")

  def loss(model, variables, batch, rng, step):
    del step
    tokens.require_model("embedding", model)
    tokens.require("embedding", batch, "roles", "rows of anchor and positive")
    hidden = model.apply(
      variables,
      batch["tokens"],
      batch["positions"],
      batch["segments"],
      method="hidden",
      rngs=None if rng is None else {"dropout": rng},
    )
    roles = batch["roles"]
    anchors, positives, negatives = (
      normalize(mean_pool(hidden, roles == role)) for role in (ANCHOR, POSITIVE, NEGATIVE)
    )
    candidates = jnp.concatenate([positives, negatives])  # [2B, D]
    there = jnp.concatenate([jnp.any(roles == role, axis=1) for role in (POSITIVE, NEGATIVE)])
    scores = jnp.matmul(anchors, candidates.T, precision="highest") / temperature  # [B, N]
    scores = jnp.where(there, scores, -jnp.inf)
    weights = batch["weights"].sum(axis=1)  # 1 a row, 0 for an empty one
    losses, right = cross_entropy.token_losses(scores, jnp.arange(len(anchors)))
    total = jnp.sum(jnp.where(weights > 0, losses * weights, 0.0))
    weight = weights.sum()
    return total, weight, {"loss": (total, weight), "accuracy": (jnp.sum(right * weights), weight)}

  return loss
