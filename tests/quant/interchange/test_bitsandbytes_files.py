"""bitsandbytes reads what we write to the bit, and we read what it writes."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from bitsandbytes import functional

from research.quant import Scheme
from research.quant.interchange import CONVENTIONS
from research.quant.qarray import quantize

TOOL = CONVENTIONS["bitsandbytes"]
IN, OUT = 192, 96
KERNEL = np.random.default_rng(0).standard_normal((IN, OUT)).astype(np.float32) * 0.02
KERNEL[:64, 3] = 0
CASES = [
  ("nf4", "float32", 64),
  ("fp4", "float32", 32),
  ("nf4", "double", 64),
  ("fp4", "double", 64),
]


def _written(held, dtype="float32"):
  settings = TOOL.settings({"a": held}, {"a": "a"}, ["lm_head"], dtype)
  return TOOL.encode(held, settings), settings


def _theirs(tensors):
  """What bitsandbytes makes of the tensors, `[out, in]`."""
  parts = {name: torch.tensor(part) for name, part in tensors.items() if name != "weight"}
  state = functional.QuantState.from_dict(parts, device=torch.device("cpu"))
  return functional.dequantize_4bit(torch.tensor(tensors["weight"]), state).numpy(), state


@pytest.mark.parametrize(("kind", "scales", "block"), CASES)
def test_bitsandbytes_makes_our_numbers(kind, scales, block):
  held = quantize(jnp.asarray(KERNEL), Scheme(kind, block, scales=scales))
  tensors, settings = _written(held)
  assert settings["bnb_4bit_quant_type"] == kind
  assert settings["bnb_4bit_use_double_quant"] == (scales == "double")
  found, _ = _theirs(tensors)
  np.testing.assert_array_equal(found.T, held.astype(jnp.float32))


@pytest.mark.parametrize(("kind", "scales", "block"), CASES)
def test_tensors_are_those_that_bitsandbytes_writes(kind, scales, block):
  codes, state = functional.quantize_4bit(
    torch.tensor(KERNEL.T.copy()),
    blocksize=block,
    quant_type=kind,
    compress_statistics=scales == "double",
  )
  theirs = {"weight": codes.numpy()}
  theirs |= {f"weight.{name}": part.numpy() for name, part in state.as_dict(packed=True).items()}
  held = quantize(jnp.asarray(KERNEL), Scheme(kind, block, scales=scales))
  ours, settings = _written(held)
  assert {n: (p.shape, p.dtype) for n, p in ours.items() if "quant_state" not in n} == {
    n: (p.shape, p.dtype) for n, p in theirs.items() if "quant_state" not in n
  }
  assert set(ours) == set(theirs)
  np.testing.assert_array_equal(ours["weight"], theirs["weight"])
  np.testing.assert_allclose(ours["weight.absmax"], theirs["weight.absmax"], rtol=0)
  back = TOOL.decode(theirs, settings)
  np.testing.assert_array_equal(back.codes, held.codes)
  # Their tables of 8-bit numbers differ from ours in the last bit.
  tolerance = {"rtol": 1e-5, "atol": 1e-7} if scales == "double" else {"rtol": 0}
  np.testing.assert_allclose(back.astype(jnp.float32), _theirs(theirs)[0].T, **tolerance)


@pytest.mark.parametrize(("kind", "scales", "block"), CASES)
def test_back_to_the_bit(kind, scales, block):
  held = quantize(jnp.asarray(KERNEL), Scheme(kind, block, scales=scales))
  back = TOOL.decode(*_written(held))
  assert back.scheme == held.scheme
  np.testing.assert_array_equal(back.codes, held.codes)
  np.testing.assert_array_equal(back.scales(), held.scales())
  if scales == "double":
    for name in ("codes", "scale", "offset"):
      np.testing.assert_array_equal(getattr(back.scale, name), getattr(held.scale, name))


@pytest.mark.parametrize("storage", ["bfloat16", "float32"])
def test_codes_that_are_stored_as_other_numbers(storage):
  """The same bytes, as bitsandbytes has them where its codes go by another type (FSDP)."""
  codes, state = functional.quantize_4bit(
    torch.tensor(KERNEL.T.copy()), quant_type="nf4", quant_storage=getattr(torch, storage)
  )
  assert codes.dtype == getattr(torch, storage)
  stored = codes.view(torch.uint8).numpy().view(jnp.dtype(storage)).reshape(codes.shape)
  held = quantize(jnp.asarray(KERNEL), Scheme("nf4", 64))
  tensors, settings = _written(held)
  back = TOOL.decode({**tensors, "weight": stored}, settings)
  np.testing.assert_array_equal(back.codes, held.codes)


def test_what_has_no_place():
  for scheme, message in (
    (Scheme("int4", 64), "hold nf4 or fp4, not int4"),
    (Scheme("nf4", 96), "'a': bitsandbytes has blocks of 32, .*not nf4 .groups of 96"),
  ):
    with pytest.raises(ValueError, match=message):
      TOOL.require("a", scheme, KERNEL.shape)


def test_what_does_not_fit_is_told():
  tensors, settings = _written(quantize(jnp.asarray(KERNEL), Scheme("nf4", 64, scales="double")))
  wrong = {**tensors, "weight.quant_map": tensors["weight.quant_map"] * 2}
  with pytest.raises(ValueError, match="weight.quant_map of a projection is not the table"):
    TOOL.decode(wrong, settings)
  (state,) = [name for name in tensors if "quant_state" in name]
  with pytest.raises(ValueError, match="has no weight.quant_state"):
    TOOL.decode({name: part for name, part in tensors.items() if name != state}, settings)
  text = tensors[state].tobytes()
  for old, new, message in (
    (b'"nested_blocksize": 256', b'"nested_blocksize": 128', "in blocks of 128 are unknown"),
    (b'"blocksize": 64', b'"blocksize": 128', "a group of 128 does not divide 192 inputs"),
  ):
    assert old in text
    changed = np.frombuffer(text.replace(old, new), np.uint8)
    with pytest.raises(ValueError, match=message):
      TOOL.decode({**tensors, state: changed}, settings)
