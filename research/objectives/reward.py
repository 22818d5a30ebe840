"""A model that gives texts a score: what was chosen shall have a higher one than what was rejected.

P pairs, two rows each.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from research.losses import reward as losses
from research.models import scored
from research.objectives import answers, tokens
from research.objectives.answers import AnswerLoss


def reward(*, tasks: Sequence[str] = (), centring: float = 0.0) -> AnswerLoss:
  """Bradley-Terry of the scores of two texts, with the rows' `margin` (`losses.reward`).

  TRL's metrics: `accuracy`, `margin` and `mean_reward`.

  Args:
    tasks: not supported.
    centring: how much the square of the sum of two scores counts.
  """
  answers.require_no_tasks("reward", tasks)
  if centring < 0:
    raise ValueError(f"objective.centring is not below 0, and not {centring}")

  def loss(model, variables, batch, rng, step):
    del step
    tokens.require_model("reward", model)
    tokens.require("reward", batch, "margin", "rows of chosen and rejected answers")
    found = scored.scores(model, variables, batch, None if rng is None else {"dropout": rng})
    chosen, rejected = jnp.split(answers.apart(found), 2)
    there = jnp.any(batch["segments"] > 0, axis=1).reshape(-1, 2).all(axis=1)
    weights = there.astype(jnp.float32)
    each = losses.bradley_terry(chosen, rejected, batch["margin"][::2], centring=centring)
    metrics = losses.metrics(chosen, rejected, weights)
    return jnp.sum(jnp.where(there, each, 0.0)), weights.sum(), metrics

  return AnswerLoss(loss)
