"""How far a student's distribution over the vocabulary is from its teacher's.

V vocabulary, K tokens that a teacher is kept of, p the student's probabilities, q the teacher's.

A `Divergence` is `(student, teacher) -> loss`: logits `[..., V]` of both, in any float type, and
float32 `[...]` in nats. The teacher is a constant: gradients go to the student alone. For a
temperature both are divided by it before. Log-probabilities are logits, too: so a teacher of which
only the `top_k` are kept is compared on those and a bucket for all the rest (`bucketed`).

All of them but `mean_squared` are sums over v of a function of p and q, whose derivative goes
through the softmax in one way: of `h = p * dL/dp` comes `dL/dlogit = h - p * sum(h)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.core.products import row_sums

Divergence = Callable[[jax.Array, jax.Array], jax.Array]


class _Sum(NamedTuple):
  """`L = sum over v of terms(log p, log q)`, and `slopes = p * dL/dp` up to a multiple of p."""

  terms: Callable[[jax.Array, jax.Array], jax.Array]
  slopes: Callable[[jax.Array, jax.Array], jax.Array]


def forward_kl() -> Divergence:
  """`KL(q || p) = sum of q log(q / p)`: the student covers what the teacher would say.

  Its gradient is that of cross-entropy to the teacher's probabilities (Hinton et al. 2015,
  arXiv:1503.02531).
  """
  return partial(
    _of_logits,
    _Sum(
      terms=lambda log_p, log_q: jnp.exp(log_q) * (log_q - log_p),
      slopes=lambda log_p, log_q: -jnp.exp(log_q),
    ),
  )


def reverse_kl() -> Divergence:
  """`KL(p || q) = sum of p log(p / q)`: the student says nothing that the teacher would not."""

  def terms(log_p, log_q):
    return jnp.exp(log_p) * (log_p - log_q)

  return partial(_of_logits, _Sum(terms=terms, slopes=terms))


def jensen_shannon(*, beta: float = 0.5) -> Divergence:
  """`beta KL(q || m) + (1 - beta) KL(p || m)`, with `m = beta q + (1 - beta) p`.

  The generalized divergence of GKD (Agarwal et al. 2023, arXiv:2306.13649, eq. 1). It vanishes
  where beta goes to 0 or 1, and its ends are the limits of what it is over `beta (1 - beta)`, as
  in the paper and in TRL: 0 is `forward_kl` and 1 `reverse_kl`.

  Raises:
    ValueError: beta is not between 0 and 1.
  """
  if not 0 <= beta <= 1:
    raise ValueError(f"beta is between 0 (forward KL) and 1 (reverse KL), not {beta}")
  if beta in (0, 1):
    return reverse_kl() if beta else forward_kl()

  def log_mixture(log_p, log_q):
    return jnp.logaddexp(log_p + math.log1p(-beta), log_q + math.log(beta))

  def terms(log_p, log_q):
    log_m = log_mixture(log_p, log_q)
    of_teacher = jnp.exp(log_q) * (log_q - log_m)
    return beta * of_teacher + (1 - beta) * jnp.exp(log_p) * (log_p - log_m)

  def slopes(log_p, log_q):
    return (1 - beta) * jnp.exp(log_p) * (log_p - log_mixture(log_p, log_q))

  return partial(_of_logits, _Sum(terms, slopes))


def total_variation() -> Divergence:
  """Half the sum of `|p - q|`, between 0 and 1; where both are equal its derivative is 0."""

  def slopes(log_p, log_q):
    p = jnp.exp(log_p)
    return 0.5 * p * jnp.sign(p - jnp.exp(log_q))

  return partial(
    _of_logits,
    _Sum(terms=lambda log_p, log_q: 0.5 * jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)), slopes=slopes),
  )


def mean_squared() -> Divergence:
  """The mean over the vocabulary of the logits' squared differences (Ba and Caruana 2014).

  It is of logits, not of distributions: a constant added to one side's counts. A teacher's `top_k`
  do not have them.
  """
  return _mean_squared


DIVERGENCES: dict[str, Callable[..., Divergence]] = {
  "forward_kl": forward_kl,
  "jensen_shannon": jensen_shannon,
  "mean_squared": mean_squared,
  "reverse_kl": reverse_kl,
  "total_variation": total_variation,
}


def top_k(logits: jax.Array, k: int, temperature: float = 1.0) -> tuple[jax.Array, jax.Array]:
  """The `k` likeliest tokens and their log-probabilities, to keep of a teacher.

  What is left of the mass can be told from them. A softmax at another temperature cannot: they are
  for losses at this one.

  Args:
    logits: `[..., V]`.

  Returns:
    int32 `[..., K]`, likeliest first, and float32 `[..., K]` in nats.
  """
  wide = logits.astype(jnp.float32) / temperature
  found, ids = jax.lax.top_k(wide, k)
  return ids, found - _log_total(wide)[..., None]


def bucketed(
  divergence: Divergence, student: jax.Array, ids: jax.Array, log_probs: jax.Array
) -> jax.Array:
  """The divergence over K + 1 outcomes: the teacher's tokens, and any other; float32 `[...]`.

  Merging outcomes makes no divergence larger, so this is at most the one of whole distributions.
  Unlike a renormalized top K, it tells the student what mass the rest has.

  Args:
    divergence: any but `mean_squared`.
    student: logits `[..., V]`, at the temperature of `log_probs`.
    ids, log_probs: of `top_k`; log-probabilities in any float type. Where rounding leaves the
      tail no mass, it has none.

  Raises:
    ValueError: the divergence is `mean_squared`.
  """
  if divergence is _mean_squared:
    raise ValueError("mean_squared compares logits, and log-probabilities were kept of the teacher")
  wide = student.astype(jnp.float32)
  chosen = jnp.take_along_axis(wide, ids, axis=-1)
  if ids.shape[-1] == student.shape[-1]:  # no other outcome, whose mass would be what rounding left
    return divergence(chosen, log_probs)
  others = jnp.put_along_axis(wide, ids, _NOTHING, axis=-1, inplace=False)
  ours = jnp.concatenate([chosen, _log_total(others)[..., None]], axis=-1)
  log_probs = log_probs.astype(jnp.float32)
  kept = jnp.minimum(jnp.sum(jnp.exp(log_probs), axis=-1, keepdims=True), 1.0)
  tail = jnp.log(jnp.maximum(1.0 - kept, _NO_MASS))
  return divergence(ours, jnp.concatenate([log_probs, tail], axis=-1))


_NOTHING = -1e30  # a logit of no mass, whose product with a probability of 0 is 0
_NO_MASS = 1e-30


def _log_total(wide):
  """`log(sum(exp(logits)))` over the last axis."""
  top = jax.lax.stop_gradient(jnp.max(wide, axis=-1))
  return top + jnp.log(row_sums(jnp.exp(wide - top[..., None])))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _of_logits(kind, student, teacher):
  return _of_logits_forward(kind, student, teacher)[0]


def _of_logits_forward(kind, student, teacher):
  student_wide, teacher_wide = student.astype(jnp.float32), teacher.astype(jnp.float32)
  totals = _log_total(student_wide), _log_total(teacher_wide)
  log_p, log_q = student_wide - totals[0][..., None], teacher_wide - totals[1][..., None]
  return row_sums(kind.terms(log_p, log_q)), (student, teacher, totals)


def _of_logits_backward(kind, residuals, g):
  # Log-probabilities once more, of the logits: two passes over them are cheaper to run than kept.
  student, teacher, totals = jax.lax.optimization_barrier(residuals)
  log_p = student.astype(jnp.float32) - totals[0][..., None]
  log_q = teacher.astype(jnp.float32) - totals[1][..., None]
  slopes = kind.slopes(log_p, log_q)
  gradient = slopes - jnp.exp(log_p) * row_sums(slopes)[..., None]
  return (gradient * g[..., None]).astype(student.dtype), None


_of_logits.defvjp(_of_logits_forward, _of_logits_backward)


def _mean_squared(student, teacher):
  wide, constant = student.astype(jnp.float32), teacher.astype(jnp.float32)
  squares = jnp.square(wide - jax.lax.stop_gradient(constant))
  return row_sums(squares) / student.shape[-1]
