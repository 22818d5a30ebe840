"""FLOPs of programs against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from research.core.grouped import grouped
from research.nn import splash
from research.planning import flops

M = jnp.zeros((8, 8))
ONE = 2 * 8**3


def _loop(x):
  return jax.lax.scan(lambda c, _: (c @ M, None), x, length=5)[0]


def _branches(x):
  return jax.lax.cond(x[0, 0] > 0, lambda: x @ M @ M, lambda: x @ M)


def _unused(x):
  x @ M
  return x @ M


def _again(x):
  return jax.grad(lambda x: jnp.sum(jnp.sin(jax.checkpoint(lambda x: jnp.sin(x @ M) @ M)(x))))(x)


@pytest.mark.parametrize(
  ("function", "products"),
  [(_loop, 5), (_branches, 2), (_unused, 1), (jax.jit(_loop), 5), (_again, 5)],
)
def test_products_are_counted(function, products):
  assert flops.count(jax.make_jaxpr(function)(M)) == (products * ONE, 0)


def test_a_row_meets_one_expert():
  x, kernels, sizes = jnp.zeros((16, 8)), jnp.zeros((4, 8, 8)), jnp.full(4, 4)
  found, _ = flops.count(jax.make_jaxpr(grouped)(x, kernels, sizes))
  assert found == 16 * 2 * 8 * 8


def test_kernels_are_apart():
  q, k = jnp.zeros((1, 1, 2, 256, 128)), jnp.zeros((1, 1, 256, 128))
  run = lambda q, k: splash.attend(q, k, k, jnp.ones((1, 256), int), causal=True)  # noqa: E731
  products, kernels = flops.count(jax.make_jaxpr(run)(q, k))
  # Two products for each head, with no key skipped.
  assert (products, kernels) == (0, 2 * 2 * 2 * 256 * 256 * 128)
