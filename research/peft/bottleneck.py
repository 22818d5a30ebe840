"""Bottleneck adapters: a small network of two layers beside or after a sub-layer.

After both sub-layers (Houlsby et al. 2019, arXiv:1902.00751, figure 2), after the feed-forward
(Pfeiffer et al. 2020, arXiv:2005.00247), or parallel to a sub-layer (He et al. 2021,
arXiv:2110.04366, table 1).

L layers, B batch, S sequence, D model, R bottleneck.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core import tree
from research.core.dot import dot
from research.peft.adapter import Adapter

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "relu": jax.nn.relu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "silu": jax.nn.silu,
  "tanh": jnp.tanh,
}
READS = ("output", "input", "sum", "stream")
FIELDS = ("down", "bias_down", "up", "bias_up", "scale_norm", "bias_norm")  # its arrays
EPSILON = 1e-5  # of the norm's variance


@struct.dataclass
class Bottleneck(Adapter):
  """`y + scale * (W_up f(W_down norm(z) + b_down) + b_up)` at a sub-layer's output `y`.

  reads: what z is: the sub-layer's "output" y, its "input" after the norm before it, the "stream"
    of residual sums that it adds to, or the "sum" of that and y.
  """

  down: jax.Array  # [..., D, R]
  bias_down: jax.Array  # [..., R]
  up: jax.Array  # [..., R, D]
  bias_up: jax.Array  # [..., D]
  scale_norm: jax.Array | None  # [..., D]; None: no norm
  bias_norm: jax.Array | None
  reads: str = struct.field(pytree_node=False, default="output")
  activation: str = struct.field(pytree_node=False, default="relu")
  scale: float = struct.field(pytree_node=False, default=1.0)
  dropout: float = struct.field(pytree_node=False, default=0.0)

  def __call__(self, value, *, x, stream, rng=None, **_):
    """`value`, `x` and `stream` `[B, S, D]` -> `[B, S, D]`, in the type of `value`."""
    kind = value.dtype
    if self.reads == "sum":
      z = value + stream
    else:
      z = {"output": value, "input": x, "stream": stream}[self.reads]
    if self.scale_norm is not None:
      z = _norm(z.astype(jnp.float32), self.scale_norm, self.bias_norm).astype(kind)
    low = ACTIVATIONS[self.activation](dot(z, self.down) + self.bias_down).astype(kind)
    update = dot(low, self.up) + self.bias_up  # float32
    if self.dropout and rng is not None:
      keep = jax.random.bernoulli(rng, 1 - self.dropout, update.shape)
      update = jnp.where(keep, update / (1 - self.dropout), 0)
    return (value.astype(jnp.float32) + self.scale * update).astype(kind)


def _norm(x, scale, bias):
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON) * scale + bias


def sites(params: Mapping[str, Any]) -> list[str]:
  """After every sub-layer of `params`, attention first.

  Raises:
    ValueError: they have no layers.
  """
  found = [
    f"{match[1]}/{match[2]}_out"
    for match in (re.fullmatch(r"(.*layers)/(\w*attention)/o_proj/kernel", path) for path in params)
    if match
  ]
  stacks = dict.fromkeys(path.rpartition("/")[0] for path in found)
  if not stacks:
    raise ValueError("a bottleneck needs a model with layers of attention")
  return [*found, *(f"{stack}/mlp_out" for stack in stacks)]


def init(
  path: str,
  params: Mapping[str, Any],
  rng: jax.Array,
  tokenizer: Any,
  *,
  size: int = 64,
  reads: str = "output",
  activation: str = "relu",
  layer_norm: bool = False,
  scale: float = 1.0,
  dropout: float = 0.0,
) -> dict[str, Adapter]:
  """A bottleneck that changes nothing yet: `down` Kaiming-uniform (gain of sqrt(5)), `up` zero.

  Args:
    path: one of `sites`.
    params: the base's, flat.
    rng: key of `down`.
    tokenizer: not used.
    size: R.
    reads: one of `READS`, see `Bottleneck`: the "output" as Houlsby's, the "input" as He's parallel
      ones.
    activation: f, a key of `ACTIVATIONS`.
    layer_norm: a norm of its own before the bottleneck.
    scale: of what is added.
    dropout: share of what is added that is dropped in training.

  Raises:
    ValueError: R is below 1, or a word is unknown.
  """
  del tokenizer
  if size < 1:
    raise ValueError(f"a bottleneck's size is 1 or more, not {size}")
  for name, word, known in (
    ("reads", reads, READS),
    ("activation", activation, tuple(ACTIVATIONS)),
  ):
    if word not in known:
      raise ValueError(f"{name} {word!r} is none of {', '.join(known)}{tree.nearest(word, known)}")
  stack = path.rpartition("/")[0]
  layers, _, features = params[f"{stack}/attention/o_proj/kernel"].shape
  bound = 1 / math.sqrt(features)
  zeros = jnp.zeros((layers, features), jnp.float32)
  return {
    path: Bottleneck(
      down=jax.random.uniform(rng, (layers, features, size), jnp.float32, -bound, bound),
      bias_down=jnp.zeros((layers, size), jnp.float32),
      up=jnp.zeros((layers, size, features), jnp.float32),
      bias_up=zeros,
      scale_norm=jnp.ones_like(zeros) if layer_norm else None,
      bias_norm=zeros if layer_norm else None,
      reads=reads,
      activation=activation,
      scale=scale,
      dropout=dropout,
    )
  }
