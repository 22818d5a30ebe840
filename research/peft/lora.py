"""LoRA: low-rank updates of projections (Hu et al. 2021, arXiv:2106.09685, eq. 3)."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from research.core import tree
from research.core.grouped import grouped
from research.core.matrix import is_matrix
from research.core.products import matmul, outer_of_rows
from research.peft.adapter import Adapter
from research.peft.decompositions import STARTS, pissa
from research.peft.kernel import EXPERTS, dropped, require_matrix, require_numbers


@dataclasses.dataclass(frozen=True)
class Eva:
  """How a LoRA is to begin by what its projection reads (`research.peft.eva`).

  rho: how many times its rank a matrix may get at most.
  batches: of the training data, from the first, by which inputs are measured.
  """

  rho: float = 2.0
  batches: int = 8


@struct.dataclass
class LoRA(Adapter):
  """`y + scale * (x a) b` at a projection's `kernel [..., in, out]`.

  Leading axes are stacks, as the kernel's are. `ranks` are the ranks along the stack in
  row-major order; a rank below R is held by zeros in the last columns of `a` and rows of
  `b`, whose gradients vanish, so that they stay zero. Rank 0 is no adapter.

  freeze_a: `a` stays as it began (LoRA-FA: Zhang et al. 2023, arXiv:2308.03303), so that of a
    projection's inputs no more than `x a` need be kept for the gradients.
  residual: the first `scale * a b` is a part of the base, which `peft.residual` takes out of it.
  eva: how `a` and ranks are still to begin; until then they are as without.
  loftq: it is still to begin as what rounding takes from its kernel.
  """

  constants: ClassVar[frozenset[str]] = frozenset({"scale"})

  a: jax.Array  # [..., in, R]
  b: jax.Array  # [..., R, out]
  scale: jax.Array  # [...]
  ranks: tuple[int, ...] = struct.field(pytree_node=False)
  dropout: float = struct.field(pytree_node=False, default=0.0)
  freeze_a: bool = struct.field(pytree_node=False, default=False)
  residual: bool = struct.field(pytree_node=False, default=False)
  eva: Eva | None = struct.field(pytree_node=False, default=None)
  loftq: bool = struct.field(pytree_node=False, default=False)

  def on(self, kernel, before):
    """See `Adapter.on`: LoftQ begins here."""
    if not self.loftq:
      return self
    if not is_matrix(kernel):
      raise ValueError(
        "the start 'loftq' makes up for rounding, and its kernel is not in few bits; give"
        " config.quantize a rule for it"
      )
    lost = np.asarray(before, np.float32) - np.asarray(kernel.astype(jnp.float32))
    a, b = _factors(pissa, lost, self.ranks, np.ravel(self.scale))
    return self.replace(a=a, b=b, loftq=False)  # type: ignore[attr-defined]

  def trains(self, leaf: str) -> bool:
    """See `Adapter.trains`."""
    return super().trains(leaf) and not (leaf == "a" and self.freeze_a)

  def __call__(self, value, *, x, rng=None, sizes=None, **_):
    """`value [..., out]` float32, `x [..., in]` -> float32 `[..., out]`.

    sizes: of groups of the rows of `x [M, in]`, each of which has factors of its own
      (`a [E, in, R]`): the experts of a mixture.
    """
    x = dropped(x, self.dropout, rng)
    if sizes is None:
      return value + low_rank(x, self.a, self.b, self.scale)
    low = grouped(x, self.a, sizes)  # [M, R]
    scale = jnp.repeat(self.scale, sizes, total_repeat_length=x.shape[0])
    return value + grouped((low * scale[:, None]).astype(x.dtype), self.b, sizes)

  def merge(self, kernel):
    """`kernel + scale * a b`, computed in float32, in the type of `kernel`."""
    update = jnp.matmul(self.a.astype(jnp.float32), self.b.astype(jnp.float32), precision="highest")
    scale = self.scale.astype(jnp.float32)[..., None, None]
    return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)


def init(
  path: str,
  kernel: jax.Array,
  rng: jax.Array,
  *,
  rank: int = 8,
  alpha: float = 8,
  dropout: float = 0.0,
  rank_stabilized: bool = False,
  rank_pattern: Mapping[str, int] | None = None,
  alpha_pattern: Mapping[str, float] | None = None,
  freeze_a: bool = False,
  start: str = "",
  rho: float | None = None,
  batches: int | None = None,
) -> LoRA:
  """A LoRA that changes nothing yet: `a` Kaiming-uniform (gain of sqrt(5)), `b` zero.

  With a `start` it is a part of the base, "pissa" or "olora" (`research.peft.decompositions`), and
  changes nothing once `peft.residual` has taken that out of the base. Two starts are for a run to
  make: "eva", by its first batches (`research.peft.eva`), and "loftq", by its base in few bits: the
  adapter is then what rounding took, as near as its rank allows (Li et al. 2023, arXiv:2310.08659,
  algorithm 1 of one step, so that the base is rounded as without it).

  Args:
    path: where `kernel` lies, as in `layers/attention/q_proj/kernel`.
    kernel: `[in, out]`, `[layers, in, out]` or `[layers, experts, in, out]`.
    rng: key of `a`.
    rank, alpha: the scale is `alpha / rank`, or `alpha / sqrt(rank)` if `rank_stabilized`
      (Kalajdzievski 2023, arXiv:2312.03732).
    dropout: share of the inputs of `a` dropped in training.
    rank_pattern, alpha_pattern: regular expressions of whole paths with the layer's number
      in them (`layers/3/attention/q_proj/kernel`), and the expert's
      (`layers/3/mlp/experts/0/up_proj/kernel`), to values that replace rank and alpha.
    freeze_a, start: see above.
    rho, batches: of the start "eva", see `Eva`.

  Raises:
    ValueError: the leaf is no projection's kernel, a rank is below 1 or above what the matrix can
      have, `start` is unknown, or there are arguments of another one.
  """
  require_matrix("LoRA", path, kernel, experts=True)
  *stack, features, out = kernel.shape
  names = numbered(path, stack)
  ranks = [_choose(rank_pattern, name, rank) for name in names]
  alphas = [_choose(alpha_pattern, name, alpha) for name in names]
  if min(ranks) < 1:
    raise ValueError(f"rank {min(ranks)} at {path!r}: ranks start at 1")
  most = min(features, out)
  if max(ranks) > most:
    raise ValueError(f"rank {max(ranks)} at {path!r}: a [{features}, {out}] has {most} at most")
  scales = [
    s / (math.sqrt(r) if rank_stabilized else r) for r, s in zip(ranks, alphas, strict=True)
  ]
  eva = _eva(path, kernel, start, rho, batches)
  loftq = start == "loftq"
  if start and not (eva or loftq):
    a, b = _start(start, path, kernel, ranks, scales)
  else:
    a, b = _kaiming(kernel, ranks, rng)
  return LoRA(
    a=a,
    b=b,
    scale=jnp.asarray(np.reshape(scales, stack), jnp.float32),
    ranks=tuple(ranks),
    dropout=dropout,
    freeze_a=freeze_a,
    residual=bool(start) and not (eva or loftq),
    eva=eva,
    loftq=loftq,
  )


def _eva(path, kernel, start, rho, batches):
  told = {k: v for k, v in (("rho", rho), ("batches", batches)) if v is not None}
  if start != "eva":
    if told:
      raise ValueError(f"{', '.join(told)} at {path!r}: for the start 'eva', not for {start!r}")
    return None
  eva = Eva(**told)
  if eva.rho < 1 or eva.batches < 1:
    raise ValueError(f"rho {eva.rho} and batches {eva.batches} of EVA start at 1")
  if kernel.ndim != 3:
    raise ValueError(f"EVA is for projections of layers, which {path!r} is not")
  return eva


def _kaiming(kernel, ranks, rng):
  *stack, features, out = kernel.shape
  width = max(ranks)
  bound = 1 / math.sqrt(features)
  a = jax.random.uniform(rng, (*stack, features, width), jnp.float32, -bound, bound)
  live = jnp.asarray(np.arange(width) < np.reshape(ranks, (*stack, 1)))  # [..., R]
  return jnp.where(live[..., None, :], a, 0.0), jnp.zeros((*stack, width, out), jnp.float32)


def _start(name, path, kernel, ranks, scales):
  if name not in STARTS:
    known = ("eva", "loftq", *STARTS)
    near = tree.nearest(name, known)
    raise ValueError(f"start {name!r} is unknown{near}; there are {', '.join(known)}")
  require_numbers(name, path, kernel)
  return _factors(STARTS[name], np.asarray(kernel), ranks, scales)


def _factors(decompose, kernel, ranks, scales):
  """What `decompose` makes of each matrix of `kernel [..., in, out]`."""
  *stack, features, out = kernel.shape
  a = np.zeros((len(ranks), features, max(ranks)), np.float32)
  b = np.zeros((len(ranks), max(ranks), out), np.float32)
  matrices = kernel.reshape(-1, features, out)
  for i, (matrix, rank, scale) in enumerate(zip(matrices, ranks, scales, strict=True)):
    a[i, :, :rank], b[i, :rank] = decompose(matrix.astype(np.float32), rank, scale)
  return jnp.asarray(a.reshape(*stack, *a.shape[1:])), jnp.asarray(b.reshape(*stack, *b.shape[1:]))


def numbered(path: str, stack: list[int]) -> list[str]:
  """`layers/x/kernel` with a stack of 2 -> `layers/0/x/kernel`, `layers/1/x/kernel`.

  A second axis of the stack numbers experts.
  """
  if not stack:
    return [path]
  head, tail = path.split("layers/", 1)
  layers = [f"{head}layers/{i}/{tail}" for i in range(stack[0])]
  if len(stack) == 1:
    return layers
  return [layer.replace(EXPERTS, f"{EXPERTS}{i}/") for layer in layers for i in range(stack[1])]


def _choose(patterns, name, default):
  for pattern, value in (patterns or {}).items():
    if re.fullmatch(pattern, name):
      return value
  return default


@jax.custom_vjp
def low_rank(x: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
  """`scale * (x a) b` -> float32; products on operands of the type of `x`."""
  return _forward(x, a, b, scale)[0]


def _forward(x, a, b, scale):
  kind = x.dtype
  low = (matmul(x, a.astype(kind), (x.ndim - 1, 0)) * scale).astype(kind)  # [..., R]
  return matmul(low, b.astype(kind), (low.ndim - 1, 0)), (x, a, b, scale, low)


def _backward(residuals, g):
  x, a, b, scale, low = residuals
  kind = x.dtype
  g = g.astype(kind)
  dlow = (matmul(g, b.astype(kind), (g.ndim - 1, 1)) * scale).astype(kind)  # [..., R]
  dx = matmul(dlow, a.astype(kind), (dlow.ndim - 1, 1)).astype(kind)
  return dx, outer_of_rows(x, dlow).astype(a.dtype), outer_of_rows(low, g).astype(b.dtype), None


low_rank.defvjp(_forward, _backward)
