"""Preferences without a reference: the policy's own log-probabilities, chosen against rejected."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.losses.pairs import PairLoss, averages, imitation

log_sigmoid = jax.nn.log_sigmoid


def orpo(*, beta: float = 0.1, prompts: bool = False) -> PairLoss:
  """Supervised tuning and `-beta log sigmoid(log odds ratio)` (Hong et al. 2024, arXiv:2403.07691).

  Equations 4 to 7; a completion's probability is the geometric mean over its tokens.

  Args:
    prompts: whether supervised tuning learns the chosen rows' prompts, too, as TRL's ORPO does.
  """

  def losses(pairs):
    chosen, rejected = (_log_odds(log_probs) for log_probs in averages(pairs))
    return imitation(pairs) - beta * log_sigmoid(chosen - rejected)

  return PairLoss(losses, beta, reference=False, averaged=True, prompts=prompts)


def cpo(*, beta: float = 0.1, alpha: float = 1.0, label_smoothing: float = 0.0) -> PairLoss:
  """DPO at a uniform reference, and supervised tuning (Xu et al. 2024, arXiv:2401.08417, eq. 3).

  Args:
    alpha: weight of the mean loss over chosen tokens.
    label_smoothing: share of pairs whose labels count as flipped.
  """

  def losses(pairs):
    preferred = _smoothed(beta * (pairs.chosen - pairs.rejected), label_smoothing)
    return preferred + alpha * imitation(pairs)

  return PairLoss(losses, beta, reference=False)


def simpo(*, beta: float = 2.0, gamma: float = 0.5, label_smoothing: float = 0.0) -> PairLoss:
  """`-log sigmoid(beta d - gamma)`, d of means over tokens (Meng et al. 2024, arXiv:2405.14734).

  Args:
    gamma: the margin of rewards to aim at.
    label_smoothing: share of pairs whose labels count as flipped.
  """

  def losses(pairs):
    chosen, rejected = averages(pairs)
    return _smoothed(beta * (chosen - rejected) - gamma, label_smoothing)

  return PairLoss(losses, beta, reference=False, averaged=True)


def _smoothed(logits: jax.Array, epsilon: float) -> jax.Array:
  return -(1 - epsilon) * log_sigmoid(logits) - epsilon * log_sigmoid(-logits)


_CERTAIN = -1e-6  # the log-probability from which on odds no longer grow, so that they are finite


def _log_odds(log_probs: jax.Array) -> jax.Array:
  """`log(p / (1 - p))` of log p."""
  bounded = jnp.minimum(log_probs, _CERTAIN)
  return bounded - jax.nn.log1mexp(-bounded)
