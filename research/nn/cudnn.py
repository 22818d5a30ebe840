"""Attention that never holds scores of a whole row, on NVIDIA's GPUs: cuDNN's kernel, through JAX.

B batch, S queries, T keys, N key/value heads, G queries' heads a group, K head size.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

_LANES, _MOST = 8, 128  # head sizes are multiples of one, up to the other
_CAPABILITY = 8  # Ampere's


def obstacle(q: jax.Array, k: jax.Array, bias: Any, softcap: float | None) -> str | None:
  """Why the kernel cannot take these arguments of `nn.attention.attend`, None if it can."""
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    return f"it is for bfloat16 and float16, not {q.dtype}"
  if bias is not None or softcap is not None:
    return "it takes no bias of scores, and does not cap them"
  if q.shape[-1] % _LANES or q.shape[-1] > _MOST:
    return f"its head size is a multiple of {_LANES} up to {_MOST}, not {q.shape[-1]}"
  if q.shape[3] % 2 or k.shape[2] % 2:
    return f"queries and keys are even in number, not {q.shape[3]} and {k.shape[2]}"
  device = jax.devices()[0]
  major = str(getattr(device, "compute_capability", "")).split(".")[0]
  if not major.isdigit() or int(major) < _CAPABILITY:
    return (
      f"it is for NVIDIA's GPUs of compute capability {_CAPABILITY}.0 on, not {device.device_kind}"
    )
  return None


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array,
  *,
  causal: bool,
  scale: float,
  implementation: Any = "cudnn",
) -> jax.Array:
  """What `nn.attention.attend` gives, to rounding, on one device.

  Args:
    q: `[B, N, G, S, K]`. k, v: `[B, N, T, K]`.
    mask: bool `[B, S, T]`. It is all that tells documents apart: with `causal` blocks of it are
      skipped, and read otherwise.
    causal, scale: see there.
    implementation: of `jax.nn.dot_product_attention`; "xla" runs anywhere.
  """
  batch, heads, group, queries, size = q.shape
  stacked = q.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads * group, size)
  out = jax.nn.dot_product_attention(
    stacked,
    k.swapaxes(1, 2),
    v.swapaxes(1, 2),
    mask=mask[:, None],
    is_causal=causal and queries == k.shape[2],
    scale=scale,
    implementation=implementation,
  )
  return out.reshape(batch, queries, heads, group, size).transpose(0, 2, 3, 1, 4)
