"""Log-probabilities of given tokens for losses of whole completions, a chunk of logits at a time.

B batch, S sequence, s tokens of a row in one chunk, D model, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research.core import tree
from research.losses import cross_entropy

Tree = Any
Head = Callable[[Tree, jax.Array], jax.Array]


def of_targets(
  head: Head,
  variables: Tree,
  hidden: jax.Array,
  targets: jax.Array,
  counted: jax.Array,
  *,
  chunk_tokens: int = 256,
) -> jax.Array:
  """The log-probability of each counted target, to be differentiated token by token.

  Any function of these may be the loss: where a head is frozen, the derivative of each token by its
  own hidden state is taken while its logits are at hand, and what flows back is multiplied later.
  Where the head trains, its gradient needs to know what flows back, and logits are made twice.

  Args:
    head: `(variables, hidden [B, s, D]) -> logits [B, s, V]`.
    variables: what the head needs; gradients are computed only for leaves that are
      differentiated.
    hidden: `[B, S, D]`.
    targets: int32 `[B, S]`.
    counted: `[B, S]`, nonzero at the tokens to judge; others cost no logits.
    chunk_tokens: tokens at a time, over all rows.

  Returns:
    float32 `[B, S]` in nats, 0 where nothing is counted.
  """
  counted = (counted != 0).astype(jnp.float32)
  return _of_targets(head, chunk_tokens, variables, hidden, targets, counted)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _of_targets(head, chunk_tokens, variables, hidden, targets, counted):
  return -cross_entropy.chunked(
    head, variables, hidden, targets, counted, chunk_tokens=chunk_tokens
  )[1]


def _forward(head, chunk_tokens, variables, hidden, targets, counted):
  wanted, fixed = tree.differentiated(variables)
  hidden, targets, counted = (leaf.value for leaf in (hidden, targets, counted))
  if jax.tree.leaves(wanted):
    values = tree.combine(wanted, fixed)
    log_probs = _of_targets(head, chunk_tokens, values, hidden, targets, counted)
    return log_probs, (wanted, fixed, hidden, targets, counted, None)

  def total(hidden):
    found, losses, _ = cross_entropy.chunked(
      head, fixed, hidden, targets, counted, chunk_tokens=chunk_tokens
    )
    return found, losses

  # The sum's gradient by a token's hidden state is that of the token's own loss.
  (_, losses), slopes = jax.value_and_grad(total, has_aux=True)(hidden)
  return -losses, (wanted, None, None, None, None, slopes)


def _backward(head, chunk_tokens, residuals, g):
  wanted, fixed, hidden, targets, counted, slopes = residuals
  if slopes is not None:
    return wanted, (-g[..., None] * slopes).astype(slopes.dtype), None, None

  def total(wanted, hidden):
    values = tree.combine(wanted, fixed)
    weights = -g * counted
    return cross_entropy.chunked(head, values, hidden, targets, weights, chunk_tokens=chunk_tokens)[
      0
    ]

  dwanted, dhidden = jax.grad(total, (0, 1))(wanted, hidden)
  return dwanted, dhidden, None, None


_of_targets.defvjp(_forward, _backward, symbolic_zeros=True)
