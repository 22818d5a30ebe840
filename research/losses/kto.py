"""Kahneman-Tversky optimization: completions that are good or bad, without a partner.

N completions. Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7, as TRL has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.losses.pairs import Sums


class Judged(NamedTuple):
  """N completions with log-probabilities summed over tokens, in nats; all arrays are `[N]`."""

  log_probs: jax.Array
  reference: jax.Array
  desirable: jax.Array  # bool
  weights: jax.Array  # 1, or 0 where a row of the batch holds no completion


def mismatched_kl(log_probs: jax.Array, reference: jax.Array, weights: jax.Array) -> jax.Array:
  """The batch's estimate of KL(policy || reference), a constant scalar that is not below 0.

  Args:
    log_probs, reference: `[N]`, of each prompt with a completion of another one of the batch.
    weights: `[N]`.
  """
  ratios = jnp.sum(weights * (log_probs - reference)) / jnp.maximum(weights.sum(), 1)
  return jax.lax.stop_gradient(jnp.maximum(ratios, 0.0))


def kto(
  *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Callable[[Judged, jax.Array], jax.Array]:
  """`1 - sigmoid(beta (r - kl))` where it is desirable, `1 - sigmoid(beta (kl - r))` where not.

  `r` is `log(policy / reference)`.

  Args:
    desirable_weight, undesirable_weight: what a completion of each kind counts; the sum of losses
      is divided by how many there are, whatever these are.

  Returns:
    `(judged, kl) -> losses`, float32 `[N]`; `kl` is `mismatched_kl`.
  """
  if not beta > 0:
    raise ValueError(f"beta is {beta}; it is above 0")

  def losses(judged: Judged, kl: jax.Array) -> jax.Array:
    apart = beta * (judged.log_probs - jax.lax.stop_gradient(judged.reference) - kl)
    good = desirable_weight * jax.nn.sigmoid(-apart)
    bad = undesirable_weight * jax.nn.sigmoid(apart)
    return jnp.where(judged.desirable, good, bad)

  return losses


def metrics(judged: Judged, kl: jax.Array, *, beta: float) -> Sums:
  """`name -> (sum, weight)`, named and computed as TRL does: rewards and log-probabilities of each.

  `kl` and `rewards/margins`, which is a difference of means, count once a batch, and the margin not
  at all where a batch has one kind only.
  """
  rewards = beta * (judged.log_probs - judged.reference)
  found = {}
  for name, which in (("chosen", judged.desirable), ("rejected", ~judged.desirable)):
    weights = judged.weights * which
    found[f"rewards/{name}"] = (jnp.sum(weights * rewards), weights.sum())
    found[f"logps/{name}"] = (jnp.sum(weights * judged.log_probs), weights.sum())
  (good, goods), (bad, bads) = found["rewards/chosen"], found["rewards/rejected"]
  both = ((goods > 0) & (bads > 0)).astype(jnp.float32)
  margin = good / jnp.maximum(goods, 1) - bad / jnp.maximum(bads, 1)
  found["rewards/margins"] = (both * margin, both)
  found["kl"] = (kl, jnp.ones(()))
  return jax.lax.stop_gradient(found)
