"""LoRA of the table of tokens, as PEFT has it (Hu et al. 2021, arXiv:2106.09685)."""

import math

import jax
import jax.numpy as jnp
from flax import struct

from research.core.dot import dot
from research.peft.lora import LoRA

PATH = "embed/embedding"


@struct.dataclass
class EmbeddingLoRA(LoRA):
  """`y + scale * a[ids] b` where tokens are looked up, `a [V, R]` and `b [R, D]`.

  A head that shares the table multiplies by it as it was.
  """

  @property
  def spares_head(self) -> bool:
    """See `Adapter.spares_head`."""
    return True

  def __call__(self, value, *, ids=None, **_):
    """`value [B, S, D]`, `ids [B, S]` -> `[B, S, D]` in its type; a head has no ids."""
    if ids is None:
      return value
    low = jnp.take(self.a, ids, axis=0).astype(value.dtype)
    return (value + self.scale * dot(low, self.b)).astype(value.dtype)


def of(factors: LoRA) -> EmbeddingLoRA:
  """The adapter with these factors; tables know no dropout."""
  return EmbeddingLoRA(factors.a, factors.b, factors.scale, factors.ranks)


def init(
  path: str,
  kernel: jax.Array,
  rng: jax.Array,
  *,
  rank: int = 8,
  alpha: float = 8,
  rank_stabilized: bool = False,
) -> EmbeddingLoRA:
  """An adapter that changes nothing yet: `a` zero, `b` normal.

  Args:
    path: `embed/embedding`.
    kernel: the table `[V, D]`, or its shape.
    rng: key of `b`.
    rank, alpha, rank_stabilized: see `research.peft.lora.init`.

  Raises:
    ValueError: another path, or a rank below 1 or above what the table can have.
  """
  if path != PATH:
    raise ValueError(f"LoRA of the table of tokens is for {PATH!r}, not for {path!r}")
  if not 1 <= rank <= min(kernel.shape):
    raise ValueError(f"rank {rank} at {path!r}: there are 1 to {min(kernel.shape)}")
  rows, features = kernel.shape
  return EmbeddingLoRA(
    a=jnp.zeros((rows, rank), jnp.float32),
    b=jax.random.normal(rng, (rank, features), jnp.float32),
    scale=jnp.asarray(alpha / (math.sqrt(rank) if rank_stabilized else rank), jnp.float32),
    ranks=(rank,),
  )
