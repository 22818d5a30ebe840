"""Pairs of completions, one chosen and one rejected, as the losses of preferences have them.

P pairs, S sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

Sums = dict[str, tuple[jax.Array, jax.Array]]


class Pairs(NamedTuple):
  """Log-probabilities of P pairs, summed over tokens, in nats; all arrays are `[P]`."""

  chosen: jax.Array
  rejected: jax.Array
  chosen_tokens: jax.Array  # how many tokens each completion has
  rejected_tokens: jax.Array
  imitated: jax.Array  # the log-probability that a term of supervised tuning raises
  imitated_tokens: jax.Array
  weights: jax.Array  # 1, or 0 where a row of the batch holds no pair
  reference_chosen: jax.Array | None = None
  reference_rejected: jax.Array | None = None


def completion_log_probs(
  log_probs: jax.Array, counted: jax.Array, *, ld_alpha: float | None = None
) -> jax.Array:
  """The log-probability of each completion.

  Length-desensitized (LD-DPO: Liu et al. 2024, arXiv:2409.06411): of the longer
  completion of a pair, the tokens beyond the other's length count `ld_alpha` each.

  Args:
    log_probs: `[2P, S]`, of each token; the rows of all chosen completions, then those of the
      rejected ones.
    counted: `[2P, S]`, nonzero at tokens of completions.
    ld_alpha: between 0 and 1; None and 1 count all tokens alike.

  Returns:
    float32 `[2P]` in nats.
  """
  share = jnp.asarray(counted != 0, jnp.float32)
  if ld_alpha is not None:
    if not 0 <= ld_alpha <= 1:
      raise ValueError(f"ld_alpha is what a token beyond the other's length counts, not {ld_alpha}")
    place = jnp.cumsum(share, axis=1)  # from 1, at a completion's tokens
    shared = share.sum(axis=1).reshape(2, -1).min(axis=0)
    share = jnp.where(place <= jnp.tile(shared, 2)[:, None], share, ld_alpha * share)
  return jnp.sum(jnp.where(share > 0, log_probs.astype(jnp.float32) * share, 0.0), axis=1)


def gather(
  log_probs: jax.Array,
  counted: jax.Array,
  reference: jax.Array | None = None,
  *,
  ld_alpha: float | None = None,
  imitated: jax.Array | None = None,
  weights: jax.Array | None = None,
) -> Pairs:
  """The pairs of a batch, whose first half of rows are chosen and whose second half rejected.

  Args:
    log_probs, counted, ld_alpha: of the policy; see `completion_log_probs`.
    reference: `[2P]`, the same of the reference, by the same `ld_alpha`; a constant.
    imitated: `[P, S]`, nonzero at the tokens of chosen rows that a term of supervised tuning
      learns: completions, if it is None. TRL's ORPO learns the prompts, too.
    weights: float32 `[P]`; 1 for pairs of which both completions have a token, if it is None.

  Raises:
    ValueError: an odd number of rows.
  """
  if len(log_probs) % 2:
    raise ValueError(f"{len(log_probs)} rows are no pairs: as many are chosen as are rejected")
  chosen, rejected = jnp.split(completion_log_probs(log_probs, counted, ld_alpha=ld_alpha), 2)
  chosen_tokens, rejected_tokens = jnp.split(jnp.sum(counted != 0, axis=1).astype(jnp.float32), 2)
  learnt = (counted[: len(chosen)] if imitated is None else imitated) != 0
  reference_chosen, reference_rejected = (
    (None, None) if reference is None else jnp.split(jax.lax.stop_gradient(reference), 2)
  )
  there = (chosen_tokens > 0) & (rejected_tokens > 0)
  return Pairs(
    chosen,
    rejected,
    chosen_tokens,
    rejected_tokens,
    jnp.sum(jnp.where(learnt, log_probs[: len(chosen)].astype(jnp.float32), 0.0), axis=1),
    jnp.sum(learnt, axis=1).astype(jnp.float32),
    there.astype(jnp.float32) if weights is None else weights,
    reference_chosen,
    reference_rejected,
  )


@dataclass(frozen=True)
class PairLoss:
  """A loss of each pair, and the rewards it works on, which are what its metrics tell.

  The reward of a completion is `beta` times its log-probability, relative to the reference's where
  there is one, and a mean over its tokens where it is `averaged`.
  """

  losses: Callable[[Pairs], jax.Array]
  beta: float
  reference: bool = True  # whether it needs log-probabilities of a reference
  averaged: bool = False
  prompts: bool = False  # whether `Pairs.imitated` is to have the tokens of prompts, too

  def __post_init__(self) -> None:
    if not self.beta > 0:
      raise ValueError(f"beta is {self.beta}; it is above 0")

  def __call__(self, pairs: Pairs) -> jax.Array:
    """The loss of each pair, float32 `[P]`."""
    return self.losses(pairs)

  def metrics(self, pairs: Pairs) -> Sums:
    """`name -> (sum, weight)` over pairs, named and computed as TRL does.

    `rewards/chosen`, `rewards/rejected`, `rewards/accuracies` (the chosen one's is larger),
    `rewards/margins`, `logps/chosen` and `logps/rejected`.
    """
    chosen, rejected = pairs.chosen, pairs.rejected
    if self.averaged:
      chosen, rejected = averages(pairs)
    good, bad = self.beta * chosen, self.beta * rejected
    if self.reference:
      good, bad = (self.beta * ratio for ratio in log_ratios(pairs))
    found = {
      "rewards/chosen": good,
      "rewards/rejected": bad,
      "rewards/accuracies": (good > bad).astype(jnp.float32),
      "rewards/margins": good - bad,
      "logps/chosen": chosen,
      "logps/rejected": rejected,
    }
    weight = pairs.weights.sum()
    return {
      name: (jnp.sum(pairs.weights * jax.lax.stop_gradient(each)), weight)
      for name, each in found.items()
    }


def log_ratios(pairs: Pairs) -> tuple[jax.Array, jax.Array]:
  """`log(policy / reference)` of chosen and rejected, `[P]` each.

  Raises:
    ValueError: the pairs have no reference.
  """
  if pairs.reference_chosen is None or pairs.reference_rejected is None:
    raise ValueError("this loss compares with a reference, and the pairs have none")
  return pairs.chosen - pairs.reference_chosen, pairs.rejected - pairs.reference_rejected


def averages(pairs: Pairs) -> tuple[jax.Array, jax.Array]:
  """Log-probabilities of chosen and rejected, means over tokens, `[P]` each."""
  return averaged(pairs, pairs.chosen, pairs.rejected)


def averaged(pairs: Pairs, chosen: jax.Array, rejected: jax.Array) -> tuple[jax.Array, jax.Array]:
  """What `[P]` sums over the tokens of completions are a token."""
  return (
    chosen / jnp.maximum(pairs.chosen_tokens, 1),
    rejected / jnp.maximum(pairs.rejected_tokens, 1),
  )


def imitation(pairs: Pairs) -> jax.Array:
  """Supervised tuning on what is chosen: `[P]`, whose mean over pairs is one over their tokens.

  As in TRL the tokens are those of all pairs that the loss is given at once.
  """
  count = jnp.maximum(jnp.sum(pairs.weights), 1)
  tokens = jnp.sum(pairs.weights * pairs.imitated_tokens) / count
  return -pairs.imitated / jnp.maximum(tokens, 1)
