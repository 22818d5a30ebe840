"""VeRA: vectors around random matrices that all sites share (Kopiczko et al., arXiv:2310.11454)."""

import math
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from research.core.dot import dot
from research.peft.adapter import Adapter
from research.peft.kernel import dropped, require_matrix, scaled


@struct.dataclass
class VeRA(Adapter):
  """`y + lambda_b * ((lambda_d * (x a)) b)` at a projection's `kernel [..., in, out]` (eq. 2).

  The rows of `a` and the columns of `b` are the first ones of two random matrices, the same at
  every site up to a factor of `a`, and they do not train. They are held at each layer, as what is
  stacked along layers has to be. Where `a` is zero there is no adapter.
  """

  constants: ClassVar[frozenset[str]] = frozenset({"a", "b"})

  a: jax.Array  # [..., in, R]
  b: jax.Array  # [..., R, out]
  lambda_d: jax.Array  # [..., R]
  lambda_b: jax.Array  # [..., out]
  dropout: float = struct.field(pytree_node=False, default=0.0)

  def __call__(self, value, *, x, rng=None, **_):
    """`value [..., out]` float32, `x [..., in]` -> float32 `[..., out]`."""
    x = dropped(x, self.dropout, rng)
    low = scaled(dot(x, self.a), self.lambda_d, x.dtype).astype(x.dtype)
    return value + scaled(dot(low, self.b), self.lambda_b, x.dtype)

  def merge(self, kernel):
    """`kernel + (a * lambda_d) (b * lambda_b)`, computed in float32, in the type of `kernel`."""
    a, b = self.a * self.lambda_d[..., None, :], self.b * self.lambda_b[..., None, :]
    update = jnp.matmul(a, b, precision="highest")
    return (kernel.astype(jnp.float32) + update).astype(kernel.dtype)


def init(
  path: str,
  kernel: jax.Array,
  rng: jax.Array,
  *,
  rank: int = 256,
  dropout: float = 0.0,
  d_initial: float = 0.1,
  projection_seed: int = 0,
) -> VeRA:
  """A VeRA that changes nothing yet: `lambda_b` zero, `lambda_d` constant (section 3.3).

  Args:
    path: where `kernel` lies.
    kernel: `[in, out]` or `[layers, in, out]`, or its shape.
    rng: not used: the matrices are those of `projection_seed`.
    rank: columns of `a`, which may be more than the kernel's.
    dropout: share of the inputs of `a` dropped in training.
    d_initial: what `lambda_d` begins as.
    projection_seed: of the matrices, Kaiming-uniform; one seed has to serve all sites.

  Raises:
    ValueError: the leaf is no projection's kernel, or the rank is below 1.
  """
  del rng
  require_matrix("VeRA", path, kernel)
  if rank < 1:
    raise ValueError(f"rank {rank} at {path!r}: ranks start at 1")
  *stack, features, out = kernel.shape
  keys = jax.random.split(jax.random.key(projection_seed))
  a = math.sqrt(6 / features) * _rows(keys[0], features, rank)
  b = math.sqrt(6 / rank) * _rows(keys[1], out, rank).T
  return VeRA(
    a=jnp.broadcast_to(a, (*stack, *a.shape)),
    b=jnp.broadcast_to(b, (*stack, *b.shape)),
    lambda_d=jnp.full((*stack, rank), d_initial, jnp.float32),
    lambda_b=jnp.zeros((*stack, out), jnp.float32),
    dropout=dropout,
  )


@partial(jax.jit, static_argnums=(1, 2))
def _rows(key, count, width):
  """`[count, width]` uniform in [-1, 1]; a row knows its number, not how many there are."""
  keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))
  return jax.vmap(lambda row: jax.random.uniform(row, (width,), jnp.float32, -1, 1))(keys)
