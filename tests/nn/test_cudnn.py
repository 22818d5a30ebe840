"""cuDNN's attention against plain attention: what we hand it anywhere, the kernel on a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models
from research.nn import cudnn
from research.nn import mask as masks
from research.nn.attention import attend

B, N, G, S, K = 2, 2, 3, 64, 16
on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")


def _arrays(dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 4)
  q = jax.random.normal(keys[0], (B, N, G, S, K), dtype)
  k, v = (jax.random.normal(key, (B, N, S, K), dtype) for key in keys[1:3])
  g = jax.random.normal(keys[3], q.shape, dtype)
  return q, k, v, g, jnp.asarray([[1] * 40 + [2] * 20 + [0] * 4, [1] * S])


def _pulled(function, q, k, v, g):
  out, back = jax.vjp(function, q, k, v)
  return [out, *back(g)]


@pytest.mark.parametrize("causal", [True, False])
def test_what_it_is_handed_is_plain_attention(causal):
  *arrays, segments = _arrays()
  mask = masks.causal(segments) if causal else segments[:, :, None] == segments[:, None]
  ours = functools.partial(cudnn.attend, mask=mask, causal=causal, scale=0.3, implementation="xla")
  plain = functools.partial(attend, mask=mask, causal=causal, scale=0.3)
  found = jax.jit(lambda: _pulled(ours, *arrays))()
  expected = jax.jit(lambda: _pulled(plain, *arrays))()
  for one, other in zip(found, expected, strict=True):
    # Rows that see nothing are anything.
    np.testing.assert_allclose(one[..., :60, :], other[..., :60, :], atol=1e-5)


@on_gpu
def test_the_kernel_is_plain_attention():
  *arrays, segments = _arrays(jnp.bfloat16)
  mask = masks.causal(segments)
  how = {"mask": mask, "causal": True}
  found = jax.jit(lambda: _pulled(functools.partial(attend, by_cudnn=True, **how), *arrays))()
  exact = [array.astype(jnp.float32) for array in arrays]
  expected = jax.jit(lambda: _pulled(functools.partial(attend, **how), *exact))()
  for one, other in zip(found, expected, strict=True):
    apart = jnp.linalg.norm((one - other)[..., :60, :]) / jnp.linalg.norm(other[..., :60, :])
    assert apart < 1e-2  # bfloat16's rounding


def test_what_the_kernel_does_not_take():
  q, k, *_ = _arrays(jnp.bfloat16)
  assert "float32" in cudnn.obstacle(q.astype(jnp.float32), k, None, None)
  assert "bias" in cudnn.obstacle(q, k, 0, None)
  assert "bias" in cudnn.obstacle(q, k, None, 30.0)
  assert "head size" in cudnn.obstacle(q[..., :12], k[..., :12], None, None)
  assert "even" in cudnn.obstacle(q[..., :7, :], k, None, None)
  told = cudnn.obstacle(q, k, None, None)
  assert told is None if jax.default_backend() == "gpu" else "NVIDIA" in told


def test_a_model_is_told_what_cannot_be():
  shape = {"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8}
  shape |= {"num_hidden_layers": 1, "num_attention_heads": 1}
  model = models.build(shape, attention="cudnn")
  with pytest.raises(ValueError, match="attention 'cudnn' cannot be: it is for bfloat16"):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 128), jnp.int32))
