"""Modified rejection sampling: drafted tokens become draws from another distribution.

Leviathan et al. 2023 (arXiv:2211.17192, algorithm 1), Chen et al. 2023 (arXiv:2302.01318).

B rows, g drafted tokens, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.generation import samplers


def accept_most_probable(drafted: jax.Array, best: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The case of a sampler that takes the most probable token.

  Args:
    drafted: int32 `[B, g]`. best: int32 `[B, g + 1]`, the target's choice in the place of each
      drafted token, and after all of them.

  Returns:
    See `accept`.
  """
  count = _leading(drafted == best[:, :-1])
  return count, jnp.take_along_axis(best, count[:, None], axis=1)[:, 0]


def accept(
  drafted: jax.Array, proposal: jax.Array, target: jax.Array, uniform: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """How many drafted tokens stay, and the token after them.

  A token x stays with probability min(1, p(x) / q(x)); in place of the first that does not comes
  a draw from max(p - q, 0), and after all of them one from p. What results is distributed as
  draws from p, whatever q.

  Args:
    drafted: int32 `[B, g]`, each drawn from its `proposal`.
    proposal: q, `[B, g, V]`, and target: p, `[B, g + 1, V]`: not negative; of each the sum over V
      is 1.
    uniform: `[B, g + 1]` in [0, 1): for each drafted token, and for the one after them.

  Returns:
    int32 `[B]`, 0 to g, and int32 `[B]`.
  """
  p = jnp.take_along_axis(target[:, :-1], drafted[..., None], axis=2)[..., 0]  # [B, g]
  q = jnp.take_along_axis(proposal, drafted[..., None], axis=2)[..., 0]
  count = _leading(uniform[:, :-1] * q < p)
  # After the last drafted token nothing was proposed: all of p is left.
  proposal = jnp.pad(proposal, ((0, 0), (0, 1), (0, 0)))
  at = count[:, None, None]
  p, q = (jnp.take_along_axis(x, at, axis=1)[:, 0] for x in (target, proposal))  # [B, V]
  rest = jnp.maximum(p - q, 0)
  # Where p and q are equal but for rounding there may be no rest to draw from.
  rest = jnp.where(jnp.any(rest > 0, axis=-1, keepdims=True), rest, p)
  return count, samplers.draw(rest, uniform[:, -1])


def _leading(stays: jax.Array) -> jax.Array:
  """How many are True before the first that is not: bool `[B, g]` -> int32 `[B]`."""
  return jnp.sum(jnp.cumprod(stays.astype(jnp.int32), axis=1), axis=1)
