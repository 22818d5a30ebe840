"""AdaLoRA: LoRA as singular vectors and values, whose ranks training shares out among matrices.

Zhang et al. 2023, arXiv:2303.10512. Here is the adapter, and the penalty that keeps its vectors
near orthogonal; `research.peft.ranks` takes ranks away while it trains.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from research.core.products import matmul
from research.peft.adapter import Adapter, sites
from research.peft.kernel import dropped, require_matrix
from research.peft.lora import low_rank

Tree = Any

_STD = 0.02  # of new singular vectors
_EPSILON = 1e-5  # in PEFT's scale


@dataclasses.dataclass(frozen=True)
class Budget:
  """How ranks are taken away, by PEFT's names; one for all adapters of a model.

  target_r: the mean rank of a matrix in the end.
  tinit: updates before the first rank goes.
  tfinal: updates after the last one has gone.
  deltaT: updates from one allocation to the next.
  beta1, beta2: of the moving averages of sensitivity and of its uncertainty.
  orth_reg_weight: of the penalty in the loss.
  """

  target_r: int = 8
  tinit: int = 0
  tfinal: int = 0
  deltaT: int = 1
  beta1: float = 0.85
  beta2: float = 0.85
  orth_reg_weight: float = 0.5


@struct.dataclass
class AdaLoRA(Adapter):
  """`y + scale * ((x a) * e) b` at a projection's `kernel [..., in, out]` (eq. 3).

  Leading axes are stacks, as the kernel's are. A rank that is taken away has a zero in `e`; where
  `scale` is zero there is no adapter.
  """

  constants: ClassVar[frozenset[str]] = frozenset({"scale"})

  a: jax.Array  # [..., in, R]
  e: jax.Array  # [..., R]
  b: jax.Array  # [..., R, out]
  scale: jax.Array  # [...]
  budget: Budget = struct.field(pytree_node=False)
  dropout: float = struct.field(pytree_node=False, default=0.0)

  def __call__(self, value, *, x, rng=None, **_):
    """`value [..., out]` float32, `x [..., in]` -> float32 `[..., out]`."""
    x = dropped(x, self.dropout, rng)
    return value + low_rank(x, self._scaled(), self.b, self.scale)

  def merge(self, kernel):
    """`kernel + scale * (a * e) b`, computed in float32, in the type of `kernel`."""
    update = jnp.matmul(self._scaled(), self.b, precision="highest")
    return (kernel.astype(jnp.float32) + self.scale[..., None, None] * update).astype(kernel.dtype)

  def _scaled(self):
    return self.a * self.e[..., None, :]


def init(
  path: str,
  kernel: jax.Array,
  rng: jax.Array,
  *,
  init_r: int = 12,
  target_r: int = 8,
  alpha: float = 8,
  dropout: float = 0.0,
  tinit: int = 0,
  tfinal: int = 0,
  deltaT: int = 1,
  beta1: float = 0.85,
  beta2: float = 0.85,
  orth_reg_weight: float = 0.5,
) -> AdaLoRA:
  """An AdaLoRA that changes nothing yet: `a` and `b` normal, `e` zero.

  Args:
    path: where `kernel` lies.
    kernel: `[in, out]` or `[layers, in, out]`, or its shape.
    rng: key of `a` and `b`.
    init_r: R, the rank at first.
    alpha: the scale is `alpha / init_r`, as PEFT has it, whatever ranks are left.
    dropout: share of the inputs of `a` dropped in training.
    target_r, tinit, tfinal, deltaT, beta1, beta2, orth_reg_weight: see `Budget`.

  Raises:
    ValueError: the leaf is no projection's kernel, a rank is more than there can be or is to grow,
      or an argument of the budget cannot be.
  """
  require_matrix("AdaLoRA", path, kernel)
  *stack, features, out = kernel.shape
  if not 1 <= init_r <= min(features, out):
    raise ValueError(f"init_r {init_r} at {path!r}: a [{features}, {out}] has 1 to its least side")
  if not 1 <= target_r <= init_r:
    raise ValueError(f"target_r {target_r} at {path!r}: ranks shrink to 1 or more of {init_r}")
  if min(tinit, tfinal) < 0 or deltaT < 1 or orth_reg_weight < 0:
    raise ValueError(
      f"tinit {tinit}, tfinal {tfinal} and orth_reg_weight {orth_reg_weight} are not negative, and"
      f" deltaT {deltaT} is 1 or more"
    )
  if not (0 < beta1 < 1 and 0 < beta2 < 1):
    raise ValueError(f"beta1 {beta1} and beta2 {beta2} lie between 0 and 1")
  if deltaT > 1 and not tfinal:
    raise ValueError(f"with deltaT {deltaT} ranks grow back after the last allocation; set tfinal")
  keys = jax.random.split(rng)
  return AdaLoRA(
    a=_STD * jax.random.normal(keys[0], (*stack, features, init_r), jnp.float32),
    e=jnp.zeros((*stack, init_r), jnp.float32),
    b=_STD * jax.random.normal(keys[1], (*stack, init_r, out), jnp.float32),
    scale=jnp.full(stack, scale_of(alpha, init_r), jnp.float32),
    budget=Budget(target_r, tinit, tfinal, deltaT, beta1, beta2, orth_reg_weight),
    dropout=dropout,
  )


def scale_of(alpha: float, init_r: int) -> float:
  """The scale that PEFT has for these."""
  return alpha / (init_r + _EPSILON)


def alpha_of(scale: float, init_r: int) -> float:
  """The inverse of `scale_of`."""
  return scale * (init_r + _EPSILON)


def training(trainable: Tree) -> Iterator[tuple[str, AdaLoRA]]:
  """`(path, adapter)` of the AdaLoRAs that train, of a tree with None where nothing does."""
  for path, node in sites(trainable):
    if isinstance(node, AdaLoRA) and node.e is not None:
      yield path, node


def penalty(trainable: Tree) -> jax.Array | None:
  """What training adds to its mean loss for `a` and `b` that are not orthogonal (eq. 4).

  `orth_reg_weight` times the mean over all matrices `a^T` and `b` of `|m m^T - 1|`, as PEFT has it:
  the Frobenius norm, where the paper has its square.

  Args:
    trainable: a tree with None where nothing trains.

  Returns:
    A float32 scalar; None where there is nothing to add.
  """
  found = [node for _, node in training(trainable) if node.budget.orth_reg_weight]
  if not found:
    return None
  norms = [_norms(m) for node in found for m in (jnp.swapaxes(node.a, -1, -2), node.b)]
  total = sum((jnp.sum(each) for each in norms), jnp.zeros(()))
  return found[0].budget.orth_reg_weight * total / sum(each.size for each in norms)


def _norms(m: jax.Array) -> jax.Array:
  """`|m m^T - 1|` of each matrix of `m [..., R, n]` -> `[...]`."""
  flat = m.reshape(-1, *m.shape[-2:])
  products = jax.vmap(lambda each: matmul(each, each, (1, 1)))(flat)
  squares = jnp.sum(jnp.square(products - jnp.eye(m.shape[-2])), axis=(-1, -2))
  # A root has no derivative at 0.
  return jnp.sqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny))
