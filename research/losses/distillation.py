"""A student's logits against its teacher's, which never exist as `[tokens, vocabulary]`.

B batch, S sequence, s tokens of a row in one chunk, D student's and E teacher's width,
V vocabulary, K tokens that a teacher is kept of.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.losses import chunks, divergences
from research.losses.cross_entropy import Head, Tree, token_losses
from research.losses.divergences import Divergence


class Teacher(NamedTuple):
  """A teacher that runs beside the student: its last hidden states and its head."""

  head: Head  # (variables, hidden [B, s, E]) -> logits [B, s, V]
  variables: Tree  # what the head needs
  hidden: jax.Array  # [B, S, E]


class Kept(NamedTuple):
  """What was kept of a teacher that does not run: `divergences.top_k` at the loss's temperature."""

  ids: jax.Array  # int32 [B, S, K]
  log_probs: jax.Array  # [B, S, K] in any float type, natural


def chunked(
  head: Head,
  variables: Tree,
  hidden: jax.Array,
  teacher: Teacher | Kept,
  weights: jax.Array,
  *,
  divergence: Divergence,
  temperature: jax.Array | float,
  squared: bool,
  targets: jax.Array | None = None,
  share: float = 1.0,
  chunk_tokens: int = 256,
) -> tuple[jax.Array, Mapping[str, jax.Array]]:
  """`sum of weights * (share * divergence + (1 - share) * cross-entropy)`, chunk by chunk.

  Both sides' logits of a chunk exist at one time and no others, and each head multiplies once:
  see `chunks.weighted_sum`. The cross-entropy is of the student's logits as they are, at
  temperature 1. The teacher is a constant, whatever its variables share with the student's.

  Args:
    head: `(variables, hidden [B, s, D]) -> logits [B, s, V]`.
    variables: what the head needs; gradients are computed only for leaves that are
      differentiated.
    hidden: `[B, S, D]`.
    teacher: of the same tokens.
    weights: float32 `[B, S]`, constants to differentiation.
    divergence: one of `divergences.DIVERGENCES`.
    temperature: above 0; may be traced, and is a constant to differentiation.
    squared: whether the divergence is multiplied by the square of the temperature, so that its
      gradient keeps its size whatever that is (Hinton et al. 2015, arXiv:1503.02531, section 2).
      GKD and TRL do not.
    targets: int32 `[B, S]`; with them the cross-entropy is told, at a share of 1, too.
    share: of the divergence, between 0 and 1.
    chunk_tokens: tokens at a time, over all rows.

  Returns:
    The sum, and what is told of each token, float32 `[B, S]`, all times its weight: `loss`, what it
    adds to the sum, `divergence`, and where there are targets `cross_entropy` in nats and
    `accuracy`. Gradients flow through the sum alone.

  Raises:
    ValueError: the vocabularies are not of one size, a share below 1 without targets, or a
      divergence of logits where log-probabilities were kept.
  """
  require_share(share)
  if share < 1 and targets is None:
    raise ValueError(f"share is {share}: the rest is cross-entropy, which needs targets")
  constants: tuple[jax.Array, ...] = (
    (teacher.hidden,) if isinstance(teacher, Teacher) else (teacher.ids, teacher.log_probs)
  )
  # The temperature goes with them: a tracer that losses close over would outlive its trace.
  heat = jax.lax.stop_gradient(jnp.asarray(temperature, jnp.float32))
  both = {"student": variables, "temperature": heat}
  if isinstance(teacher, Teacher):
    # What is shared with the student would otherwise be summed a second gradient, of zeros.
    both["teacher"] = jax.lax.stop_gradient(teacher.variables)

  def of_chunk(variables, hidden, constants, targets):
    logits, temperature = head(variables["student"], hidden), variables["temperature"]
    student = logits.astype(jnp.float32) / temperature
    if isinstance(teacher, Kept):
      far = divergences.bucketed(divergence, student, *constants)
    else:
      others = teacher.head(variables["teacher"], *constants)
      require_one_vocabulary(logits.shape[-1], others.shape[-1])
      far = divergence(student, others.astype(jnp.float32) / temperature)
    far = far * jnp.square(temperature) if squared else far
    if targets is None:
      return far, far
    if share == 1:  # a gradient of 0 would be computed, too
      return far, far, *token_losses(jax.lax.stop_gradient(logits), targets)
    losses, right = token_losses(logits, targets)
    return share * far + (1 - share) * losses, far, losses, right

  total, told = chunks.weighted_sum(
    of_chunk,
    both,
    hidden,
    (jax.lax.stop_gradient(constants), targets),
    weights,
    chunk_tokens=chunk_tokens,
  )
  names = ("loss", "divergence", "cross_entropy", "accuracy")
  return total, dict(zip(names, told, strict=False))


def require_one_vocabulary(student: int, teacher: int) -> None:
  """Raises ValueError if the two have not as many logits."""
  if student != teacher:
    raise ValueError(
      f"the teacher has {teacher} logits and the student {student}: what they say of a token can be"
      " compared in one vocabulary only; text that the teacher wrote can be learnt in any"
    )


def require_log_probs(divergence: Divergence) -> None:
  """Raises ValueError if the divergence is of logits, which `Kept` has not."""
  one = jax.ShapeDtypeStruct((1, 1), jnp.float32)
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  jax.eval_shape(lambda x, i: divergences.bucketed(divergence, x, i, x), one, ids)


def require_share(share: float) -> None:
  """Raises ValueError if `share` is no part of a loss."""
  if not 0 <= share <= 1:
    raise ValueError(f"share is the divergence's part of the loss, between 0 and 1, not {share}")


def keep(
  head: Head,
  variables: Tree,
  hidden: jax.Array,
  k: int,
  *,
  temperature: float = 1.0,
  chunk_tokens: int = 256,
) -> Kept:
  """The `k` likeliest next tokens of each token and their log-probabilities, chunk by chunk.

  Args:
    head: `(variables, hidden [s, E]) -> logits [s, V]`.
    variables: what the head needs.
    hidden: `[B, S, E]`.
    temperature: that of the loss.
    chunk_tokens: tokens at a time, over all rows.
  """
  batch, length, width = hidden.shape
  size = batch * length
  chunk = min(size, chunk_tokens)
  rows = jnp.pad(hidden.reshape(size, width), ((0, -size % chunk), (0, 0)))
  found = jax.lax.map(
    lambda x: divergences.top_k(head(variables, x), k, temperature), rows.reshape(-1, chunk, width)
  )
  return Kept(*(each.reshape(-1, k)[:size].reshape(batch, length, k) for each in found))
