"""Keys are functions of seed, purpose and step."""

import itertools

import jax

from research.core import rng


def test_every_key_is_another_and_each_comes_again():
  def bits(seed, purpose, step):
    return tuple(jax.random.key_data(rng.at(rng.root(seed, purpose), step)).tolist())

  cases = list(itertools.product((0, 1), ("init", "step"), (0, 1, 2)))
  keys = [bits(*case) for case in cases]
  assert len(set(keys)) == len(cases)
  assert keys == [bits(*case) for case in cases]
