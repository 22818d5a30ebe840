"""Model FLOPs utilisation: the arithmetic that training needs, by what the machine could do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from research import peft
from research.core import chips, matrix, tree
from research.core.matrix import parameter_of


def peak_flops() -> float:
  """FLOP/s of all devices at their best: the data sheet's figure, else what a product reaches.

  On a CPU, and on accelerators that are not in `core.chips`, it is the faster of a float32 and a
  bfloat16 product (accumulated in float32) of 1024 x 1024 matrices, the best of five. A busy
  machine measures low, which flatters the utilisation: set `config.log.peak_flops` to compare.
  """
  chip = chips.find(jax.devices()[0].device_kind)
  if chip is not None:
    return chip.flops * jax.device_count()
  return max(_measured(jnp.float32), _measured(jnp.bfloat16)) * jax.device_count()


def train_flops_per_token(
  forward_flops: Callable[[float], float],
  variables: Any,
  trainable: Any,
  active: Callable[[str], float] = lambda path: 1.0,
  teacher: Any = None,
  forward_passes: int = 0,
) -> Callable[[float], float]:
  """`length -> FLOPs` that one token needs in training, in rows of `length` tokens.

  Three parts: the forward pass F; the gradient of the activations, another F and once more its
  part of the attention scores (a product of two activations has two gradients); and the gradient
  of the matrices that train, 2 a weight. Adapters add their own forward and backward passes, 6 a
  weight. With everything in training it is the usual 6 a weight and 12 * L * H * K * length / 2 of
  causal attention (Chowdhery et al. 2022, PaLM, appendix B). Recomputation is not counted.

  Args:
    forward_flops: the FLOPs of a forward pass of the base, a token, in rows of a length.
    variables: all variables, or their shapes.
    trainable: those that train, None elsewhere.
    active: the share of the parameter at a path that one token meets.
    teacher: a model whose forward pass comes on top.
    forward_passes: of the base that come on top, as of a reference.
  """
  paths = tree.flatten(variables)
  # A decoder without a head multiplies by its embeddings; encoders have few tokens that do.
  apart = ("params/lm_head/", "params/embed_norm/")
  has_head = any(path.startswith(apart) for path in paths)
  kernels = {f"params/{path}": leaf for path, leaf in matrix.flatten(variables["params"]).items()}
  # Of a kernel of which but the scales train it is the whole gradient that they are summed of.
  trained = {parameter_of(path) for path in tree.flatten(trainable) if path.startswith("params/")}
  weights = {
    path: kernels[path].size * active(path)
    for path in trained
    if path.endswith("/kernel") or path == "params/embed/embedding" and not has_head
  }
  # What a method trains in another form acts on tokens as what it is made into; and what is looked
  # up multiplies nothing.
  acting = jax.eval_shape(peft.materialize, variables.get("adapters", {}))
  adapters = sum(
    leaf.size * active(path)
    for path, leaf in tree.flatten(acting).items()
    if not path.startswith("embed/")
  )
  # A token passes through one side of an encoder-decoder: half of the weights, with as many of one
  # side as of the other.
  sides = 2 if any(path.startswith("params/encoder/") for path in paths) else 1
  constant = (2 * sum(weights.values()) + 6 * adapters) / sides

  def per_token(length: float) -> float:
    forward = forward_flops(length)
    beside = teacher.config.flops_per_token(length) if teacher is not None else 0.0
    return (2 + forward_passes) * forward + (forward - forward_flops(0.0)) + constant + beside

  return per_token


def _measured(dtype: Any) -> float:
  """FLOP/s of a matrix product in `dtype` on one device."""
  size = 1024
  product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
  a = jnp.ones((size, size), dtype)
  product(a, a).block_until_ready()
  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    product(a, a).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * size**3 / min(seconds)
