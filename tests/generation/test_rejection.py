"""Rejection sampling against the distribution it promises."""

import jax
import jax.numpy as jnp
import numpy as np

from research.generation import rejection

P = np.array([[0.5, 0.2, 0.3, 0.0], [0.1, 0.1, 0.1, 0.7], [0.25, 0.25, 0.5, 0.0]], np.float32)
Q = np.array([[0.1, 0.6, 0.1, 0.2], [0.1, 0.1, 0.1, 0.7]], np.float32)
DRAWS = 200_000


def test_what_is_kept_is_distributed_as_the_target():
  """And as often as sum(min(p, q)); within five standard errors (a false alarm in 10^5 seeds)."""
  first, second, uniform = jax.random.split(jax.random.key(0), 3)
  drafted = jnp.stack(
    [
      jax.random.choice(key, 4, (DRAWS,), p=jnp.asarray(q))
      for key, q in zip((first, second), Q, strict=True)
    ],
    axis=1,
  )
  spread = [jnp.broadcast_to(x, (DRAWS, *x.shape)) for x in (Q, P)]
  count, following = jax.jit(rejection.accept)(
    drafted, *spread, jax.random.uniform(uniform, (DRAWS, 3))
  )
  count, following = np.asarray(count), np.asarray(following)
  tokens = np.concatenate([np.asarray(drafted), np.zeros((DRAWS, 1), int)], axis=1)
  tokens[np.arange(DRAWS), count] = following
  for place in range(3):
    seen = tokens[count >= place, place]
    found = np.bincount(seen, minlength=4) / len(seen)
    assert (np.abs(found - P[place]) <= 5 * np.sqrt(P[place] * (1 - P[place]) / len(seen))).all()
  stays = np.minimum(P[0], Q[0]).sum()
  assert abs((count > 0).mean() - stays) < 5 * np.sqrt(stays * (1 - stays) / DRAWS)
  # Where draft and target are one, the draft always stays.
  assert (count[count > 0] == 2).all()


def test_the_most_probable():
  drafted = jnp.array([[1, 2, 3], [1, 2, 3], [9, 2, 3]])
  best = jnp.array([[1, 2, 3, 4], [1, 7, 3, 4], [1, 2, 3, 4]])
  count, following = rejection.accept_most_probable(drafted, best)
  assert count.tolist() == [3, 1, 0] and following.tolist() == [4, 7, 1]
