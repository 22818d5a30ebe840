"""Losses of tokens that a policy wrote itself, by how good they were.

N rows of the batch, S sequence. Ratios are those of a token's probability now and when it was
written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from research.core import config

Sums = dict[str, tuple[jax.Array, jax.Array]]
# `(log_probs, old, advantages, mask)`, all `[N, S]`, to losses `[N, S]` and metrics.
TokenLoss = Callable[..., tuple[jax.Array, Sums]]

LEVELS = ("token", "sequence")
AVERAGES = ("tokens", "answers", "length")


def clipped(
  *,
  epsilon: float = 0.2,
  epsilon_high: float | None = None,
  delta: float | None = None,
  level: str = "token",
) -> TokenLoss:
  """`-min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A)`.

  PPO (Schulman et al. 2017, arXiv:1707.06347, eq. 7), and so GRPO; with a larger `epsilon_high`
  DAPO (Yu et al. 2025, arXiv:2503.14476, eq. 10), with `level` "sequence" GSPO (Zheng et al. 2025,
  arXiv:2507.18071, eq. 5 to 7).

  Args:
    epsilon, epsilon_high: how far a ratio counts below and above 1, by default as far.
    delta: the most that a ratio counts at all, also where the advantage is below 0.
    level: a ratio is a token's, or for each token that of its answer: the mean of their logarithms.
  """
  high = epsilon if epsilon_high is None else epsilon_high
  if not 0 < epsilon < 1 or high <= 0:
    raise config.ConfigError(
      f"epsilon is between 0 and 1 and epsilon_high above 0, not {epsilon}, {high}"
    )
  if delta is not None and delta <= 1 + high:
    raise config.ConfigError(f"delta is above 1 + epsilon_high, {1 + high}, and not {delta}")
  _require_level(level)

  def losses(log_probs, old, advantages, mask):
    ratio = _ratio(log_probs, old, mask, level)
    within = jnp.clip(ratio, 1 - epsilon, 1 + high)
    most = ratio if delta is None else jnp.minimum(ratio, delta)
    low = (ratio < 1 - epsilon) & (advantages < 0)
    above = (ratio > 1 + high) & (advantages > 0)
    metrics = {
      "clip_ratio/low_mean": _mean(low, mask),
      "clip_ratio/high_mean": _mean(above, mask),
      "clip_ratio/region_mean": _mean(low | above, mask),
    }
    return -jnp.minimum(most * advantages, within * advantages), metrics

  return losses


def cispo(*, epsilon_high: float = 5.0, level: str = "token") -> TokenLoss:
  """`-A log p`, weighted by the ratio, a constant, up to `epsilon_high`.

  No token's gradient is lost to the clip (MiniMax-M1, arXiv:2506.13585, eq. 4 and 5).
  """
  if epsilon_high < 1:
    raise config.ConfigError(
      f"epsilon_high is the most a ratio counts, not below 1: {epsilon_high}"
    )
  _require_level(level)

  def losses(log_probs, old, advantages, mask):
    ratio = _ratio(log_probs, old, mask, level)
    weight = jax.lax.stop_gradient(jnp.minimum(ratio, epsilon_high))
    metrics = {"cispo_clip_ratio": _mean((ratio > epsilon_high) & (advantages > 0), mask)}
    return -weight * advantages * log_probs, metrics

  return losses


def reinforce() -> TokenLoss:
  """`-A log p` (Williams 1992), for answers that the model as it is has written."""

  def losses(log_probs, old, advantages, mask):
    del old, mask
    return -advantages * log_probs, {}

  return losses


LOSSES: dict[str, Callable[..., TokenLoss]] = {
  "clipped": clipped,
  "cispo": cispo,
  "reinforce": reinforce,
}


def build(section: Mapping[str, Any]) -> TokenLoss:
  """The loss that a section names; ConfigError if there is none, or it takes no such key."""
  return config.call(LOSSES, section)


def divergence(log_probs: jax.Array, reference: jax.Array) -> jax.Array:
  """An estimate of KL(policy || reference) by each token, never below 0: `q - log q - 1` for
  `q = reference / policy` (k3 of Schulman 2020; GRPO's eq. 4)."""
  apart = reference - log_probs
  return jnp.exp(apart) - apart - 1


def value_loss(
  values: jax.Array, old: jax.Array, returns: jax.Array, *, clip: float
) -> tuple[jax.Array, jax.Array]:
  """Half the squared error of a critic, or of what it said when the answer was written plus at most
  `clip`, whichever is larger (PPO's reference code; Ouyang et al. 2022, arXiv:2203.02155).

  Returns:
    Losses `[N, S]`, and whether the clip decided.
  """
  near = jnp.clip(values, old - clip, old + clip)
  plain, held = jnp.square(values - returns), jnp.square(near - returns)
  return 0.5 * jnp.maximum(plain, held), held > plain


def weights(
  mask: jax.Array, average: str, length: int, answered: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """What each token counts in the sum of losses, `[N, S]`, and what that is divided by.

  Args:
    mask: `[N, S]`, 1 at an answer's tokens.
    average: over all "tokens" (DAPO), over "answers" of each one's mean (GRPO), or over answers of
      sums divided by `length` (Dr. GRPO; with 1 it is RLOO's).
    length: a constant number of tokens.
    answered: `[N]`, 1 in rows with an answer. One of which nothing is learnt, as it was cut off, is
      an answer like the others, as in TRL.
  """
  if average == "tokens":
    return mask, mask.sum()
  if average == "answers":
    return mask / jnp.maximum(mask.sum(axis=1, keepdims=True), 1), answered.sum()
  return mask / length, answered.sum()


def _ratio(log_probs: jax.Array, old: jax.Array, mask: jax.Array, level: str) -> jax.Array:
  apart = log_probs - old
  if level == "sequence":
    each = jnp.sum(apart * mask, axis=1, keepdims=True)
    apart = jnp.broadcast_to(each / jnp.maximum(mask.sum(axis=1, keepdims=True), 1), mask.shape)
  return jnp.exp(apart)


def _require_level(level: str) -> None:
  if level not in LEVELS:
    raise config.ConfigError(f"level is {level!r}; there are {', '.join(LEVELS)}")


def _mean(found: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  return jnp.sum(found * mask), mask.sum()
