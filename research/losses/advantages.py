"""How much better than expected an answer, or a token of it, was.

N rows of the batch, of which each G neighbours are answers to one prompt, S sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from research.core import config

_EPSILON = 1e-4  # in place of a spread of 0, as TRL's
SCALES = ("group", "batch", "none")

Advantage = Callable[[jax.Array, int], jax.Array]


def group(*, scale: str = "group") -> Advantage:
  """The reward less the mean of its prompt's, over a standard deviation.

  GRPO (Shao et al. 2024, arXiv:2402.03300, eq. 2 and section 4.1.2). Deviations are of samples
  (divided by one less than there are), and 1e-4 is added to them, as in TRL.

  Args:
    scale: the deviation is that of the prompt's answers ("group"), of all rows ("batch",
      arXiv:2508.08221), or there is none (Dr. GRPO, arXiv:2503.20783).
  """
  if scale not in SCALES:
    raise config.ConfigError(f"scale is {scale!r}; there are {', '.join(SCALES)}")

  def of(rewards: jax.Array, samples: int) -> jax.Array:
    groups = rewards.reshape(-1, samples)
    apart = groups - groups.mean(axis=1, keepdims=True)
    if scale == "none":
      return apart.reshape(-1)
    every = groups if scale == "group" else rewards.reshape(1, -1)
    return (apart / (jnp.std(every, axis=1, keepdims=True, ddof=1) + _EPSILON)).reshape(-1)

  return of


def leave_one_out() -> Advantage:
  """The reward less the mean of the prompt's other answers (RLOO: Ahmadian et al. 2024,
  arXiv:2402.14740, eq. 8)."""

  def of(rewards: jax.Array, samples: int) -> jax.Array:
    groups = rewards.reshape(-1, samples)
    others = (groups.sum(axis=1, keepdims=True) - groups) / (samples - 1)
    return (groups - others).reshape(-1)

  return of


# Of the rewards of answers, `[N]`, and how many neighbours share a prompt, to `[N]`.
ADVANTAGES: dict[str, Callable[..., Advantage]] = {"group": group, "leave_one_out": leave_one_out}


def build(section: Any) -> Advantage:
  """The advantage that a section names; ConfigError if there is none, or it takes no such key."""
  return config.call(ADVANTAGES, section)


def generalized(
  rewards: jax.Array, values: jax.Array, mask: jax.Array, *, gamma: float, lam: float
) -> tuple[jax.Array, jax.Array]:
  """Advantages and returns of each token by a critic's values (GAE: Schulman et al. 2015,
  arXiv:1506.02438, eq. 16).

  `A_t = sum over l of (gamma lam)^l d_(t+l)` with `d_t = r_t + gamma V_(t+1) - V_t`; behind the
  last token is nothing. Returns are `A + V`.

  Args:
    rewards: `[N, S]`, of the token that is chosen there.
    values: `[N, S]`, expected before it is.
    mask: `[N, S]`, 1 at an answer's tokens, which are neighbours.

  Returns:
    Two arrays `[N, S]`, 0 outside of the mask.
  """
  values = values * mask
  following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
  apart = (rewards + gamma * following - values) * mask

  def back(later, at):
    delta, here = at
    found = (delta + gamma * lam * later) * here
    return found, found

  start = jnp.zeros(len(rewards), apart.dtype)
  _, found = jax.lax.scan(back, start, (apart.T, mask.T), reverse=True)
  return found.T, (found.T + values) * mask


def whitened(values: jax.Array, mask: jax.Array) -> jax.Array:
  """`values [N, S]` with mean 0 and variance 1 (of samples) over the mask, 0 outside of it."""
  count = jnp.maximum(mask.sum(), 1)
  mean = jnp.sum(values * mask) / count
  variance = jnp.sum(jnp.square(values - mean) * mask) / jnp.maximum(count - 1, 1)
  return (values - mean) * jax.lax.rsqrt(variance + 1e-8) * mask
