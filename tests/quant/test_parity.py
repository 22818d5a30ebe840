"""Codes against torchao's and qwix's, of weights and of activations.

Scales, symmetric: absmax over (most - least) / 2: 127.5 of int8, 7.5 of int4; with zero points: the
range with 0 in it over 255 or 15, and the zero point is least - round(low / scale), clipped. Codes:
multiply with the float32 inverse of the scale, round half to even, add the zero point, clip to -128
to 127 or -8 to 7. So does torchao, in this order. Activations: absmax over 127, a row each, clipped
to -127 to 127, as bitsandbytes has it; torchao and qwix take 127.5 unless they are told the range.

8-bit floats: absmax over the largest of the type, and numbers are clipped and rounded half to even.
torchao divides by the scale (one code of six million was another), and an output of zeros is NaN
there.

qwix divides by the scale, and its scales are products with a rounded inverse of the range, so that
their last bit may be another. Without zero points a group's largest number is half way between two
codes where it is negative, and this bit decides; nothing else may differ.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from research.quant import integer, qarray
from research.quant.scheme import Scheme

with warnings.catch_warnings():
  warnings.simplefilter("ignore")
  import qwix
  from torchao.quantization import (
    Float8Tensor,
    Int8Tensor,
    IntxUnpackedToInt8Tensor,
    MappingType,
    PerRow,
  )
  from torchao.quantization.quant_primitives import choose_qparams_affine, quantize_affine

OUT, IN, GROUP = 64, 192, 32
RNG = np.random.default_rng(0)
WEIGHT = (RNG.standard_t(4, (OUT, IN)) * 0.02).astype(np.float32)
WEIGHT[3], WEIGHT[5, :GROUP] = 0, 0
ROWS = RNG.standard_t(4, (128, IN)).astype(np.float32)
ROWS[7] = 0


def _ours(**how):
  return qarray.quantize(jnp.asarray(WEIGHT.T), Scheme(**how))


def _theirs_of_torchao(kind, symmetric):
  if kind == "int8":
    return Int8Tensor.from_hp(torch.tensor(WEIGHT), PerRow())
  mapping = MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
  return IntxUnpackedToInt8Tensor.from_hp(
    torch.tensor(WEIGHT), (1, GROUP), torch.int4, mapping_type=mapping
  )


WAYS = pytest.mark.parametrize(
  ("kind", "group", "symmetric"), [("int8", 0, True), ("int4", GROUP, True), ("int4", GROUP, False)]
)


@WAYS
def test_torchaos_codes_of_weights_are_all_ours(kind, group, symmetric):
  held = _ours(kind=kind, group=group, symmetric=symmetric)
  theirs = _theirs_of_torchao(kind, symmetric)
  np.testing.assert_array_equal(held.integers().T, theirs.qdata.numpy())
  np.testing.assert_array_equal(held.astype(jnp.float32).T, theirs.dequantize().numpy())
  scales = np.asarray(held.scale).T
  # Where all are 0, torchao has the least scale that it allows, and ours is 0.
  np.testing.assert_array_equal(scales[scales > 0], theirs.scale.numpy()[scales > 0])
  if not symmetric:
    np.testing.assert_array_equal(held.zero.T, theirs.zero_point.numpy())


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_torchaos_codes_of_floats_are_all_ours(kind):
  dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[kind]
  held, theirs = _ours(kind=kind), Float8Tensor.from_hp(torch.tensor(WEIGHT), dtype, PerRow())
  rows = np.arange(OUT) != 3
  codes = np.asarray(held.codes).T.view(np.uint8)
  np.testing.assert_array_equal(codes[rows], theirs.qdata.view(torch.uint8).numpy()[rows])
  np.testing.assert_array_equal(np.asarray(held.scale).T, theirs.scale.numpy())
  assert not held.astype(jnp.float32)[:, 3].any() and theirs.dequantize()[3].isnan().all()


@WAYS
def test_qwixs_codes_of_weights_are_ours_but_for_halves(kind, group, symmetric):
  held = _ours(kind=kind, group=group, symmetric=symmetric)
  theirs = qwix.quantize(
    jnp.asarray(WEIGHT.T),
    kind,
    channelwise_axes=[1],
    tiled_axes={0: group} if group else None,
    calibration_method="absmax" if symmetric else "minmax",
  )
  codes, others = np.asarray(held.integers()), np.asarray(theirs.qvalue).astype(np.int8)
  apart = codes != others
  if not symmetric:
    assert not apart.any()
    np.testing.assert_array_equal(held.zero, np.asarray(theirs.zero_point).astype(np.int8))
    return
  grouped = WEIGHT.T.reshape(-1, group or IN, OUT)
  lowest = (grouped == -np.abs(grouped).max(axis=1, keepdims=True)).reshape(IN, OUT)
  assert not (apart & ~lowest).any() and np.abs(codes[apart] - others[apart]).max(initial=0) <= 1
  assert np.mean(~apart) > (0.98 if group else 0.997)
  scales, of_theirs = np.asarray(held.scale), np.asarray(theirs.scale)
  np.testing.assert_allclose(scales[scales > 0], of_theirs[scales > 0], rtol=1.2e-7)


def test_codes_of_activations_are_all_theirs():
  codes, scale = jax.jit(integer.rows)(jnp.asarray(ROWS))
  rows = torch.tensor(ROWS)
  how = {"quant_min": -127, "quant_max": 127}
  theirs, zero = choose_qparams_affine(
    rows,
    MappingType.SYMMETRIC,
    (1, IN),
    torch.int8,
    **how,
    scale_dtype=torch.float32,
    zero_point_dtype=torch.int8,
    keepdim=True,
  )
  found = quantize_affine(rows, (1, IN), theirs, zero, torch.int8, **how)
  np.testing.assert_array_equal(codes, found.numpy())
  held = qwix.quantize(
    jnp.asarray(ROWS),
    "int8",
    channelwise_axes=[0],
    calibration_method=f"absmax,{127.5 / 127}",  # of the range that it divides by
  )
  np.testing.assert_array_equal(codes, held.qvalue)
  np.testing.assert_allclose(scale[:7], theirs.numpy()[:7], rtol=1.2e-7)
  np.testing.assert_allclose(scale[:7], held.scale[:7], rtol=2.4e-7)
