"""The kernel for TPUs, interpreted, against plain attention: outputs, gradients, and on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models
from research.nn import mask as masks
from research.nn import splash
from research.nn.attention import attend

B, N, G, S, K = 1, 2, 2, 256, 64  # heads that fill half a register


def _arrays():
  keys = jax.random.split(jax.random.key(0), 4)
  q = jax.random.normal(keys[0], (B, N, G, S, K))
  k, v = (jax.random.normal(key, (B, N, S, K)) for key in keys[1:3])
  segments = jnp.asarray([[1] * 100 + [2] * 130 + [0] * 26])
  return q, k, v, segments, jax.random.normal(keys[3], q.shape)


def test_kernel_is_plain_attention():
  causal, window, softcap = True, 40, 5.0
  q, k, v, segments, g = _arrays()
  positions = jnp.arange(S)[None]
  mask = masks.within(masks.causal(segments), positions, positions, window)

  def pulled(function):
    out, back = jax.vjp(function, q, k, v)
    return [out, *back(g)]

  how = {"scale": 0.1, "softcap": softcap}
  kernel = functools.partial(splash.attend, causal=causal, window=window, interpret=True, **how)
  found = jax.jit(lambda: pulled(lambda *a: kernel(*a, segments)))()
  expected = jax.jit(lambda: pulled(lambda *a: attend(*a, mask, causal=causal, **how)))()
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5)


def test_what_the_kernel_does_not_take():
  q, k, _, segments, _ = _arrays()
  assert splash.obstacle(q, k, segments, None) is None
  assert "whole rows" in splash.obstacle(q, k, None, None)
  assert "bias" in splash.obstacle(q, k, segments, 0)
  assert "positions" in splash.obstacle(q[..., :200, :], k[:, :, :200], segments, None)


def test_a_model_is_told_what_cannot_be():
  shape = {"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8}
  shape |= {"num_hidden_layers": 1, "num_attention_heads": 1}
  token = jnp.zeros((1, 100), jnp.int32)
  for name, told in (("splash", "rows are multiples of 128 positions"), ("flash", "none of auto")):
    model = models.build(shape, attention=name)
    with pytest.raises(ValueError, match=told):
      jax.eval_shape(model.init, jax.random.key(0), token)
