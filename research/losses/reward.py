"""A reward model's loss: the reward of what was chosen above that of what was rejected.

P pairs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.losses.pairs import Sums


def bradley_terry(
  chosen: jax.Array,
  rejected: jax.Array,
  margin: jax.Array | float = 0.0,
  *,
  centring: float = 0.0,
) -> jax.Array:
  """`-log sigmoid(chosen - rejected - margin) + centring (chosen + rejected)^2`, as TRL has it.

  Ouyang et al. 2022 (arXiv:2203.02155, eq. 1), with the margin of Touvron et al. 2023
  (arXiv:2307.09288, eq. 2) and the centring of Eisenstein et al. 2023 (arXiv:2312.09244):
  a pair's likelihood fixes rewards up to a constant, which centring takes to 0.

  Args:
    chosen, rejected: rewards `[P]`.
    margin: `[P]` or one for all, by how much the chosen one is better.

  Returns:
    float32 `[P]`.
  """
  chosen, rejected = chosen.astype(jnp.float32), rejected.astype(jnp.float32)
  losses = -jax.nn.log_sigmoid(chosen - rejected - margin)
  return losses + centring * jnp.square(chosen + rejected)


def metrics(chosen: jax.Array, rejected: jax.Array, weights: jax.Array) -> Sums:
  """`name -> (sum, weight)` over pairs, named as TRL names them.

  `accuracy` (the chosen one's reward is larger), `margin` and `mean_reward`.

  Args:
    chosen, rejected: rewards `[P]`. weights: `[P]`.
  """
  chosen, rejected = (jax.lax.stop_gradient(x).astype(jnp.float32) for x in (chosen, rejected))
  total = weights.sum()
  return {
    "accuracy": (jnp.sum(weights * (chosen > rejected)), total),
    "margin": (jnp.sum(weights * (chosen - rejected)), total),
    "mean_reward": (jnp.sum(weights * (chosen + rejected) / 2), total),
  }
