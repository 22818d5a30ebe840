"""Attention that never holds scores of a whole row: JAX's splash attention, a kernel for TPUs.

It reads blocks of keys and values as FlashAttention does (Dao et al. 2022, arXiv:2205.14135), and
skips those that no query of a block sees.

B batch, S positions, N key/value heads, G queries' heads a group, K head size.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as kernels
from jax.sharding import NamedSharding, PartitionSpec

from research.core import sharding
from research.nn import remat

_LANES = 128  # of a vector register: sizes are multiples of it
_BLOCK = 512  # positions at a time, at most
# Of which each pass has its own.
_BLOCKS: Any = (
  *("block_q", "block_kv", "block_kv_compute"),
  *("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"),
  *("block_q_dq", "block_kv_dq"),
)


def obstacle(q: jax.Array, k: jax.Array, segments: jax.Array | None, bias: Any) -> str | None:
  """Why the kernel cannot take these arguments of `attend`, None if it can."""
  if segments is None:
    return "it is for whole rows of documents, whose layers are all of one kind, without a prefix"
  if bias is not None:
    return "it takes no bias of scores"
  if q.shape[3] != k.shape[2] or q.shape[3] % (_LANES * sharding.parts("sequence")):
    return (
      f"rows are multiples of {_LANES} positions on each device along `sequence`, not {q.shape[3]}"
    )
  return None


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  segments: jax.Array,
  *,
  causal: bool,
  window: int = 0,
  scale: float | None = None,
  softcap: float | None = None,
  interpret: bool = False,
) -> jax.Array:
  """What `nn.attention.attend` gives for a mask by documents, to rounding.

  On a mesh each device has its rows and heads, and along `sequence` its queries with all keys.

  Args:
    q: `[B, N, G, S, K]`. k, v: `[B, N, S, K]`.
    segments: int32 `[B, S]`; tokens of a number see each other.
    causal: and only earlier ones. window: of those, itself and so many less one before it; 0: all.
    scale, softcap: see `nn.attention.attend`.
    interpret: runs where there is no TPU, slowly.
  """
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  kernel = _kernel(
    q.shape[2], q.shape[3], sharding.parts("sequence"), causal, window, softcap, interpret
  )

  def each(kernel: Any, q: Any, k: Any, v: Any, mine: Any, theirs: Any) -> jax.Array:
    ids = kernels.SegmentIds(mine, theirs)
    heads = jax.vmap(kernel, (0, 0, 0, None))
    return jax.vmap(heads)(q, k, v, ids)

  size = q.shape[-1]
  q, k, v = (_whole(x) for x in ((q * scale).astype(q.dtype), k, v))
  if not sharding.is_spread():
    return each(kernel, q, k, v, segments, segments)[..., :size]
  own = sharding.spec(q, "batch", "heads", None, "sequence", None)
  seen = sharding.spec(k, "batch", "heads", None, None)
  mesh = jax.sharding.get_abstract_mesh()
  spread = jax.shard_map(
    each,
    in_specs=(
      kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, own[3]))),
      own,
      seen,
      seen,
      sharding.spec(segments, "batch", "sequence"),
      sharding.spec(segments, "batch", None),
    ),
    out_specs=own,
    check_vma=False,
  )
  return spread(kernel, q, k, v, segments, segments)[..., :size]


def _whole(x: jax.Array) -> jax.Array:
  """Heads with zeros up to whole registers, which a TPU's memory holds anyhow; no score changes."""
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % _LANES)])


def _kernel(
  group: int,
  length: int,
  shards: int,
  causal: bool,
  window: int,
  softcap: float | None,
  interpret: bool,
) -> Any:
  shape = (length, length)
  mask: Any = kernels.CausalMask(shape, shard_count=shards) if causal else kernels.FullMask(shape)
  if window:
    # Itself and those before it; without `causal` as many after it.
    reach = (window - 1, 0 if causal else window - 1)
    mask = kernels.LocalMask(shape, reach, 0, shard_count=shards)
  block = next(size for size in (_BLOCK, 256, _LANES) if length // shards % size == 0)
  sizes: dict[str, Any] = dict.fromkeys(_BLOCKS, block)
  return kernels.make_splash_mqa(
    kernels.MultiHeadMask([mask] * group),
    block_sizes=kernels.BlockSizes(**sizes),
    attn_logits_soft_cap=softcap,
    head_shards=1,
    q_seq_shards=shards,
    residual_checkpoint_name=remat.ATTENTION,
    interpret=interpret,
  )
