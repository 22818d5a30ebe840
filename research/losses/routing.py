"""What keeps a mixture's router sound: its experts evenly used and its logits small.

L layers, B batch, S sequence, E experts.
"""

import jax
import jax.numpy as jnp


def balance(logits: jax.Array, top_k: int, real: jax.Array) -> jax.Array:
  """`E * sum over e of f_e * p_e`, at least `top_k` where all experts are used alike.

  `f_e` is the share of tokens that go to expert e (they sum to `top_k`) and `p_e` its mean
  probability, both over the real tokens of all layers together, as `load_balancing_loss_func` of
  `transformers` has it (Fedus et al. 2021, arXiv:2101.03961, eq. 4 to 6). The gradient is that of
  `p_e` alone.

  Args:
    logits: `[L, B, S, E]`.
    top_k: experts a token goes to.
    real: bool `[B, S]`, False at padding.

  Returns:
    A float32 scalar; 0 without a real token.
  """
  experts = logits.shape[-1]
  probabilities = jax.nn.softmax(logits.astype(jnp.float32))
  _, chosen = jax.lax.top_k(logits, top_k)  # [L, B, S, top_k]
  counted = jnp.broadcast_to(real, logits.shape[:-1]).astype(jnp.float32)  # [L, B, S]
  taken = jnp.repeat(counted.reshape(-1), top_k)
  used = jnp.zeros(experts).at[chosen.reshape(-1)].add(taken)
  likely = jnp.einsum("lbs,lbse->e", counted, probabilities)
  tokens = jnp.maximum(counted.sum(), 1.0)
  return experts * jnp.sum(used / tokens * likely / tokens)


def z_sum(logits: jax.Array, weights: jax.Array) -> jax.Array:
  """The weighted sum over tokens of `log(sum(exp(logits)))^2`, a mean over layers.

  It keeps logits from growing (Zoph et al. 2022, arXiv:2202.08906, eq. 5).

  Args:
    logits: `[L, B, S, E]`.
    weights: float32 `[B, S]`.
  """
  squares = jnp.square(jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1))  # [L, B, S]
  return jnp.sum(weights * jnp.mean(squares, axis=0))
