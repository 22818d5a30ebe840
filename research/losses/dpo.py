"""Direct preference optimization: a policy against a reference, by the loss types of TRL.

P pairs. Each function gives a `PairLoss` by its settings, named as TRL names them, with TRL's
conventions: log-probabilities are sums over tokens unless the docstring says otherwise. `r` is the
log-ratio `log(policy / reference)` of a completion, `s` its score, which is `r` unless another
`f_divergence` than the reverse KL keeps the policy at the reference, and `d` the chosen one's score
less the rejected one's. Settings that a loss does not read it does not take.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.core.tree import nearest
from research.losses.pairs import PairLoss, Pairs, averaged, imitation, log_ratios

log_sigmoid = jax.nn.log_sigmoid

Score = Callable[[jax.Array], jax.Array]


def sigmoid(
  *, beta: float = 0.1, f_divergence: str = "reverse_kl", f_alpha: float = 0.5
) -> PairLoss:
  """`-log sigmoid(beta d)` (DPO: Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

  Args:
    f_divergence: `reverse_kl`, `forward_kl`, `js_divergence` or `alpha_divergence`, whose
      derivative gives scores (f-DPO: Wang et al. 2023, arXiv:2309.16240).
    f_alpha: of `alpha_divergence`.
  """
  score = _score(f_divergence, f_alpha)
  return PairLoss(lambda pairs: -log_sigmoid(beta * _difference(pairs, score)), beta)


def sigmoid_norm(
  *, beta: float = 0.1, f_divergence: str = "reverse_kl", f_alpha: float = 0.5
) -> PairLoss:
  """`sigmoid` of scores that are divided by the number of tokens (Tülu 3, arXiv:2411.15124)."""
  score = _score(f_divergence, f_alpha)
  return PairLoss(lambda pairs: -log_sigmoid(beta * _averaged_difference(pairs, score)), beta)


def hinge(*, beta: float = 0.1, f_divergence: str = "reverse_kl", f_alpha: float = 0.5) -> PairLoss:
  """`max(0, 1 - beta d)` (SLiC: Zhao et al. 2023, arXiv:2305.10425; RSO, arXiv:2309.06657)."""
  score = _score(f_divergence, f_alpha)
  return PairLoss(lambda pairs: jax.nn.relu(1 - beta * _difference(pairs, score)), beta)


def ipo(*, beta: float = 0.1, f_divergence: str = "reverse_kl", f_alpha: float = 0.5) -> PairLoss:
  """`(d - 1 / (2 beta))^2` of scores a token (IPO: Azar et al. 2023, arXiv:2310.12036, eq. 17).

  The paper's tau is `beta`. That scores are divided by the number of tokens is TRL's.
  """
  score = _score(f_divergence, f_alpha)
  return PairLoss(
    lambda pairs: jnp.square(_averaged_difference(pairs, score) - 1 / (2 * beta)), beta
  )


def robust(
  *,
  beta: float = 0.1,
  label_smoothing: float = 0.0,
  f_divergence: str = "reverse_kl",
  f_alpha: float = 0.5,
) -> PairLoss:
  """`sigmoid` without the bias of flipped labels (rDPO: Chowdhury et al. 2024, arXiv:2403.00409).

  Args:
    label_smoothing: the share of pairs whose labels are flipped, below 1/2.
  """
  epsilon = _smoothing(label_smoothing)
  score = _score(f_divergence, f_alpha)

  def losses(pairs):
    logits = beta * _difference(pairs, score)
    kept, flipped = -log_sigmoid(logits), -log_sigmoid(-logits)
    return ((1 - epsilon) * kept - epsilon * flipped) / (1 - 2 * epsilon)

  return PairLoss(losses, beta)


def exo_pair(
  *,
  beta: float = 0.1,
  label_smoothing: float = 1e-3,
  f_divergence: str = "reverse_kl",
  f_alpha: float = 0.5,
) -> PairLoss:
  """Reverse KL from the smoothed label (EXO: Ji et al. 2024, arXiv:2402.00856, eq. 16 at K = 2).

  Args:
    label_smoothing: the label's probability of being wrong, above 0 and below 1/2.
  """
  epsilon = _smoothing(label_smoothing)
  if not epsilon:
    raise ValueError("exo_pair needs a label_smoothing above 0: the KL from certainty is infinite")
  score = _score(f_divergence, f_alpha)

  def losses(pairs):
    logits = beta * _difference(pairs, score)
    won, lost = log_sigmoid(logits), log_sigmoid(-logits)
    return jnp.exp(won) * (won - math.log1p(-epsilon)) + jnp.exp(lost) * (lost - math.log(epsilon))

  return PairLoss(losses, beta)


def discopop(
  *,
  beta: float = 0.1,
  discopop_tau: float = 0.05,
  f_divergence: str = "reverse_kl",
  f_alpha: float = 0.5,
) -> PairLoss:
  """Logistic where `d` is low, exponential where it is high (Lu et al. 2024, arXiv:2406.08414)."""
  if not discopop_tau > 0:
    raise ValueError(f"discopop_tau is {discopop_tau}; it is above 0")
  score = _score(f_divergence, f_alpha)

  def losses(pairs):
    logits = beta * _difference(pairs, score)
    high = jax.nn.sigmoid(logits / discopop_tau)
    return (1 - high) * -log_sigmoid(logits) + high * jnp.exp(-logits)

  return PairLoss(losses, beta)


def nca_pair(*, beta: float = 0.1) -> PairLoss:
  """Noise-contrastive: chosen rewards rise, both are held (Chen et al. 2024, arXiv:2402.05369)."""

  def losses(pairs):
    chosen, rejected = (beta * ratio for ratio in log_ratios(pairs))
    return -log_sigmoid(chosen) - 0.5 * (log_sigmoid(-chosen) + log_sigmoid(-rejected))

  return PairLoss(losses, beta)


def bco_pair(*, beta: float = 0.1) -> PairLoss:
  """A classifier's loss of each completion (BCO: Jung et al. 2024, arXiv:2404.04656), no shift."""

  def losses(pairs):
    chosen, rejected = (beta * ratio for ratio in log_ratios(pairs))
    return -log_sigmoid(chosen) - log_sigmoid(-rejected)

  return PairLoss(losses, beta)


def sppo_hard(*, beta: float = 0.1) -> PairLoss:
  """Log-ratios to `1 / (2 beta)` and to its negative (SPPO: Wu et al. 2024, arXiv:2405.00675).

  Equation 4.7 where the chosen completion wins for sure.
  """

  def losses(pairs):
    chosen, rejected = log_ratios(pairs)
    return jnp.square(chosen - 0.5 / beta) + jnp.square(rejected + 0.5 / beta)

  return PairLoss(losses, beta)


def apo_zero(*, beta: float = 0.1) -> PairLoss:
  """Chosen up, rejected down: for data better than the model (D'Oosterlinck et al. 2024).

  arXiv:2408.06266, eq. 7.
  """

  def losses(pairs):
    chosen, rejected = (beta * ratio for ratio in log_ratios(pairs))
    return jax.nn.sigmoid(-chosen) + jax.nn.sigmoid(rejected)

  return PairLoss(losses, beta)


def apo_down(*, beta: float = 0.1) -> PairLoss:
  """Both down, rejected more: for data worse than the model (arXiv:2408.06266, eq. 8)."""

  def losses(pairs):
    chosen, rejected = (beta * ratio for ratio in log_ratios(pairs))
    return jax.nn.sigmoid(chosen) + jax.nn.sigmoid(rejected - chosen)

  return PairLoss(losses, beta)


def aot(*, beta: float = 0.1, label_smoothing: float = 0.0) -> PairLoss:
  """The policy's margins dominate the reference's as distributions (Melnyk et al. 2024).

  arXiv:2406.05882, of paired data: the n-th smallest margin `log p(chosen) - log p(rejected)` of
  the policy is compared with the n-th smallest of the reference. So a pair's loss depends on the
  others of the batch; it is given at the pair whose margin of the policy it is.
  """
  epsilon = _smoothing(label_smoothing)

  def losses(pairs):
    margins = pairs.chosen - pairs.rejected
    return _dominance(
      beta, epsilon, pairs, margins, pairs.reference_chosen - pairs.reference_rejected
    )

  return PairLoss(losses, beta)


def aot_unpaired(*, beta: float = 0.1, label_smoothing: float = 0.0) -> PairLoss:
  """Chosen log-ratios dominate rejected ones as distributions (arXiv:2406.05882, unpaired data).

  The n-th smallest of each are compared; the loss is given at the pair whose chosen one it is.
  """
  epsilon = _smoothing(label_smoothing)

  def losses(pairs):
    return _dominance(beta, epsilon, pairs, *log_ratios(pairs))

  return PairLoss(losses, beta)


def sft() -> PairLoss:
  """Supervised tuning on chosen completions, for mixtures: the mean over tokens, not over pairs."""
  return PairLoss(imitation, beta=1.0, reference=False)


def _dominance(beta, epsilon, pairs, high, low):
  """`sigmoid`, smoothed, of each of `high` less the one of the same rank in `low`, all `[P]`."""
  there = pairs.weights > 0
  sorted_low = jnp.sort(jnp.where(there, low, jnp.inf))
  ranks = jnp.argsort(jnp.argsort(jnp.where(there, high, jnp.inf)))
  # Rows without a pair rank last on both sides, and are compared with nothing.
  apart = jnp.where(there, high - jnp.where(there, sorted_low[ranks], 0.0), 0.0)
  return -(1 - epsilon) * log_sigmoid(beta * apart) - epsilon * log_sigmoid(-beta * apart)


def _difference(pairs: Pairs, score: Score) -> jax.Array:
  chosen, rejected = map(score, log_ratios(pairs))
  return chosen - rejected


def _averaged_difference(pairs: Pairs, score: Score) -> jax.Array:
  chosen, rejected = averaged(pairs, *map(score, log_ratios(pairs)))
  return chosen - rejected


def _smoothing(value: float) -> float:
  if not 0 <= value < 0.5:
    raise ValueError(
      f"label_smoothing is a share of wrong labels, from 0 to below 0.5, not {value}"
    )
  return value


_LARGEST_EXPONENT = 80.0  # whose exponential is finite in float32, as TRL clips


def _score(f_divergence: str, f_alpha: float) -> Score:
  """`f'(t)` at `t = exp(log-ratio)`, as TRL has it, of the log-ratio."""

  def alpha(ratio):
    power = jnp.minimum((f_alpha - 1) * ratio, _LARGEST_EXPONENT)
    return jnp.expm1(power) / (f_alpha - 1)

  scores: dict[str, Score] = {
    "alpha_divergence": alpha if abs(f_alpha - 1) >= 1e-6 else lambda ratio: ratio,
    "forward_kl": lambda ratio: 1 - jnp.exp(-ratio),
    "js_divergence": lambda ratio: math.log(2) + log_sigmoid(ratio),
    "reverse_kl": lambda ratio: ratio,
  }
  if f_divergence not in scores:
    raise ValueError(
      f"f_divergence is {f_divergence!r}{nearest(f_divergence, scores)}; there are"
      f" {', '.join(sorted(scores))}"
    )
  return scores[f_divergence]
