"""Cross-entropy that never holds `[tokens, vocabulary]`.

B batch, S sequence, s tokens of a row in one chunk, D model, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from research.core.products import row_sums
from research.losses import chunks

Tree = Any
Head = Callable[[Tree, jax.Array], jax.Array]


@jax.custom_vjp
def token_losses(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`-log softmax(logits)[target]` and whether the target is the largest logit.

  `logits [..., V]`, `targets [...]` -> float32 `[...]` in nats, bool `[...]`.
  """
  return _token_losses_forward(logits, targets)[0]


def _token_losses_forward(logits, targets):
  wide = logits.astype(jnp.float32)
  top = jnp.max(wide, axis=-1)
  log_total = top + jnp.log(row_sums(jnp.exp(wide - top[..., None])))
  chosen = jnp.take_along_axis(wide, targets[..., None], axis=-1)[..., 0]
  return (log_total - chosen, chosen >= top), (logits, targets, log_total)


def _token_losses_backward(residuals, g):
  # softmax - one_hot in a single pass over the logits; no gradient through what was counted.
  logits, targets, log_total = jax.lax.optimization_barrier(residuals)
  p = jnp.exp(logits.astype(jnp.float32) - log_total[..., None])
  hit = jnp.arange(logits.shape[-1]) == targets[..., None]
  return (jnp.where(hit, p - 1, p) * g[0][..., None]).astype(logits.dtype), None


token_losses.defvjp(_token_losses_forward, _token_losses_backward)


def of_tokens(
  head: Head,
  variables: Tree,
  hidden: jax.Array,
  targets: jax.Array,
  *,
  chunk_tokens: int = 512,
) -> jax.Array:
  """The loss of each token, float32 `[B, S]` in nats; see `judge_tokens`."""
  return judge_tokens(head, variables, hidden, targets, chunk_tokens=chunk_tokens)[0]


def judge_tokens(
  head: Head,
  variables: Tree,
  hidden: jax.Array,
  targets: jax.Array,
  *,
  chunk_tokens: int = 512,
) -> tuple[jax.Array, jax.Array]:
  """What `token_losses` says of each token, a chunk at a time; for figures, not for gradients.

  Args:
    head: `(variables, hidden [s, D]) -> logits [s, V]`. variables: what it needs.
    hidden: `[B, S, D]`.
    targets: int32 `[B, S]`.
    chunk_tokens: tokens at a time, over all rows.

  Returns:
    float32 `[B, S]` in nats, and bool `[B, S]`: whether the target has the largest logit.
  """

  def of_chunk(hidden, targets):
    return token_losses(head(variables, hidden), targets)

  return chunks.told(of_chunk, hidden, targets, chunk_tokens=chunk_tokens)


def chunked(
  head: Head,
  variables: Tree,
  hidden: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  *,
  chunk_tokens: int = 256,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Weighted sum of token losses, a chunk of tokens at a time; token by token, what it adds up.

  See `chunks.weighted_sum`: prompts and padding cost no logits, and logits are computed once.

  Args:
    head: `(variables, hidden [B, s, D]) -> logits [B, s, V]`.
    variables: what the head needs; gradients are computed only for leaves that are
      differentiated.
    hidden: `[B, S, D]`.
    targets: int32 `[B, S]`.
    weights: float32 `[B, S]`, constants to differentiation.
    chunk_tokens: tokens at a time, over all rows.

  Returns:
    `(sum of weight * loss in nats, weight * loss [B, S], weight * [guess is right] [B, S])`;
    gradients flow through the first alone.
  """

  def of_chunk(variables, hidden, targets):
    return token_losses(head(variables, hidden), targets)

  total, (losses, right) = chunks.weighted_sum(
    of_chunk, variables, hidden, (targets,), weights, chunk_tokens=chunk_tokens
  )
  return total, losses, right
