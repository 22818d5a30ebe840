"""NF4 and FP4 against bitsandbytes, byte for byte (its CPU code: nearest, halves to the lower one).

bitsandbytes numbers a weight `[out, in]` row by row; so do ours, turned.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from bitsandbytes import functional

from research.quant import codebooks, qarray
from research.quant.packing import unpack
from research.quant.scheme import Scheme

OUT, IN = 96, 576


def _weight():
  weight = np.random.default_rng(0).standard_t(4, (OUT, IN)).astype(np.float32) * 0.02
  weight[3, :64] = 0
  return weight


def _theirs(kind, double=False, block=64):
  return functional.quantize_4bit(
    torch.tensor(_weight()), blocksize=block, quant_type=kind, compress_statistics=double
  )


def _bytes(held):
  """As bitsandbytes packs them: `[out, in]` row by row, the first number in the high half."""
  codes = np.asarray(unpack(held.codes, 4, -2)).T.reshape(-1, 2)
  return codes[:, 0] << 4 | codes[:, 1]


@pytest.mark.parametrize("block", [64, 32])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codes_and_scales_are_theirs(kind, block):
  codes, state = _theirs(kind, block=block)
  held = qarray.quantize(jnp.asarray(_weight().T), Scheme(kind, group=block))
  np.testing.assert_array_equal(np.asarray(held.scale).T.reshape(-1), state.absmax.numpy())
  np.testing.assert_array_equal(_bytes(held), codes.numpy().reshape(-1))
  back = functional.dequantize_4bit(codes, state).numpy()
  np.testing.assert_array_equal(np.asarray(held.astype(jnp.float32)).T, back)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_the_tables_are_theirs(kind):
  theirs = functional.get_4bit_type(kind, "cpu").numpy()
  np.testing.assert_array_equal(codebooks.values(kind), theirs)


def test_double_quantization_is_theirs():
  codes, state = _theirs("nf4", double=True)
  held = qarray.quantize(jnp.asarray(_weight().T), Scheme("nf4", group=64, scales="double"))
  np.testing.assert_array_equal(_bytes(held), codes.numpy().reshape(-1))
  np.testing.assert_allclose(codebooks.dynamic(), state.state2.code.numpy(), rtol=1.3e-7)
  np.testing.assert_allclose(held.scale.offset, state.offset.numpy(), rtol=1e-6)
  np.testing.assert_allclose(held.scale.scale, state.state2.absmax.numpy(), rtol=1e-6)
  np.testing.assert_array_equal(np.asarray(held.scale.codes).T.reshape(-1), state.absmax.numpy())
  back = functional.dequantize_4bit(codes, state).numpy()
  np.testing.assert_allclose(np.asarray(held.astype(jnp.float32)).T, back, rtol=1e-5, atol=1e-7)
