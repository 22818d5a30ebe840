"""GPTQ's and AWQ's tensors against a plain reading of their definitions, number by number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.quant import Scheme, gptq
from research.quant.interchange import CONVENTIONS
from research.quant.qarray import quantize

IN, OUT = 96, 64
RNG = np.random.default_rng(0)
PLAIN = RNG.standard_normal((IN, OUT)).astype(np.float32)
KERNEL = PLAIN.copy()
KERNEL[:, 3] = 0
KERNEL[:16, 5] = np.abs(KERNEL[:16, 5])  # a group whose zero point is the least


def _bits(word, start, count):
  """`count` bits of a row of 32-bit words from bit `start`, the lowest first."""
  found = 0
  for i in range(count):
    where = start + i
    found |= (int(word[where // 32]) >> where % 32 & 1) << i
  return found


def _gptq(tensors, bits, version):
  """The numbers `[in, out]`, float32, of GPTQ's tensors."""
  codes = [[_bits(column, bits * i, bits) for i in range(IN)] for column in tensors["qweight"].T]
  zero = [[_bits(row, bits * i, bits) for i in range(OUT)] for row in tensors["qzeros"]]
  codes, zero = np.asarray(codes).T, np.asarray(zero) + (version == "gptq")
  group = tensors["g_idx"]
  return tensors["scales"].astype(np.float32)[group] * (codes - zero[group]).astype(np.float32)


def _awq(tensors, group):
  """The numbers `[in, out]`, float32, of AWQ's tensors: output `order[k]` is in half byte `k`."""

  def numbers(words):
    found = np.zeros((len(words), OUT), np.int64)
    for k, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
      found[:, output::8] = words.view(np.uint32) >> np.uint32(4 * k) & np.uint32(15)
    return found

  scales = np.repeat(tensors["scales"].astype(np.float32), group, axis=0)
  zeros = np.repeat(numbers(tensors["qzeros"]), group, axis=0)
  return scales * (numbers(tensors["qweight"]) - zeros).astype(np.float32)


def _equal(found, held):
  for name in ("codes", "scale", "zero", "order"):
    ours, theirs = getattr(held, name), getattr(found, name)
    assert (ours is None) == (theirs is None), name
    if ours is not None:
      assert ours.dtype == theirs.dtype
      np.testing.assert_array_equal(theirs, ours, err_msg=name)
  assert found.scheme == held.scheme


GPTQ = {
  "int2": Scheme("int2", 16, scales="float16"),
  "int3": Scheme("int3", 32, symmetric=False, scales="float16"),
  "int4": Scheme("int4", 32, scales="float16"),
  "int4 zero": Scheme("int4", 16, symmetric=False, scales="float16"),
  "int8 an output": Scheme("int8", 0, scales="float16"),
  "int8 zero": Scheme("int8", 48, symmetric=False, scales="float16"),
}


@pytest.mark.parametrize("case", GPTQ)
def test_gptq_is_what_it_is_defined_as(case):
  scheme = GPTQ[case]
  kernel = KERNEL if case == "int4 zero" else PLAIN
  held, tool = quantize(jnp.asarray(kernel), scheme), CONVENTIONS["gptq"]
  settings = tool.settings({"a": held}, {"a": "a"}, ["lm_head"], "float16")
  # A zero point of 0 has no place in the first version.
  assert settings["checkpoint_format"] == ("gptq_v2" if case == "int4 zero" else "gptq")
  assert settings["sym"] == scheme.symmetric and not settings["desc_act"]
  tensors = tool.encode(held, settings)
  kinds = {name: (str(part.dtype), part.shape) for name, part in tensors.items()}
  groups = IN // scheme.group if scheme.group else 1
  assert kinds == {
    "qweight": ("int32", (IN * scheme.bits // 32, OUT)),
    "qzeros": ("int32", (groups, OUT * scheme.bits // 32)),
    "scales": ("float16", (groups, OUT)),
    "g_idx": ("int32", (IN,)),
  }
  found = _gptq(tensors, scheme.bits, settings["checkpoint_format"])
  np.testing.assert_array_equal(found, held.astype(jnp.float32))
  _equal(tool.decode(tensors, settings), held)


def test_gptq_in_the_order_of_activations():
  x = RNG.standard_normal((400, IN)) * np.arange(1, IN + 1)
  scheme = Scheme("int4", 32, scales="float16")
  held = gptq.GPTQ(act_order=True).round(jnp.asarray(KERNEL), x.T @ x, scheme)
  tool = CONVENTIONS["gptq"]
  settings = tool.settings({"a": held}, {"a": "a"}, ["lm_head"], "float16")
  assert settings["desc_act"]
  tensors = tool.encode(held, settings)
  np.testing.assert_array_equal(tensors["g_idx"], held.order)
  np.testing.assert_array_equal(_gptq(tensors, 4, "gptq"), held.astype(jnp.float32))
  _equal(tool.decode(tensors, settings), held)


@pytest.mark.parametrize("group", [32, 0])
def test_awq_is_what_it_is_defined_as(group):
  held = quantize(jnp.asarray(KERNEL), Scheme("int4", group, symmetric=False, scales="float16"))
  tool = CONVENTIONS["awq"]
  settings = tool.settings({"a": held}, {"a": "a", "b": "mlp.b"}, ["lm_head"], "float16")
  assert settings["group_size"] == (group or -1)
  assert settings["modules_to_not_convert"] == ["mlp.b", "lm_head"]
  tensors = tool.encode(held, settings)
  assert tensors["qweight"].shape == (IN, OUT // 8) and tensors["qweight"].dtype == np.int32
  np.testing.assert_array_equal(_awq(tensors, group or IN), held.astype(jnp.float32))
  _equal(tool.decode(tensors, settings), held)


def _held(kind="int4", group=32, shape=(IN, OUT), **how):
  scheme = Scheme(kind, group, **{"scales": "float16", **how})
  return quantize(jnp.asarray(RNG.standard_normal(shape).astype(np.float32)), scheme)


WRONG = {
  "scales": ("gptq", _held(scales="float32"), '"scales": "float16" in the rule does it'),
  "table": ("gptq", _held("nf4"), r"GPTQ's files hold int2, .* not nf4 .*'native' holds it"),
  "matrix": ("gptq", _held(group=-1), "not int4 .one scale"),
  "outputs": ("gptq", _held(shape=(IN, 60)), "'a' has 60 outputs of 4 bits, and GPTQ packs them"),
  "inputs": ("gptq", _held("int3", 8, (40, 64)), "'a' has 40 inputs of 3 bits"),
  "symmetric": ("awq", _held(), "AWQ's files hold int4 with zero points, .*False in the rule"),
  "bits": ("awq", _held("int3", symmetric=False), "AWQ's files hold int4"),
  "awq scales": ("awq", _held(symmetric=False, scales="float32"), '"scales": "float16"'),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_has_no_place(case):
  tool, held, message = WRONG[case]
  with pytest.raises(ValueError, match=message):
    CONVENTIONS[tool].require("a", held.scheme, held.shape)


def test_groups_of_inputs_in_another_order_have_no_place_in_awq():
  held = _held(symmetric=False).replace(order=jnp.arange(IN, dtype=jnp.int32) % 3)
  with pytest.raises(ValueError, match="'a' has groups of inputs that do not follow each other"):
    CONVENTIONS["awq"].settings({"a": held}, {"a": "a"}, ["lm_head"], "float16")


BROKEN = {
  "bits": ({"bits": 5}, {}, "GPTQ of 5 bits is unknown"),
  "version": ({"checkpoint_format": "marlin"}, {}, "checkpoint_format 'marlin' is unknown"),
  "middle": ({"sym": True}, {}, "zero points of symmetric GPTQ are all 8"),
  "group": ({"group_size": 16}, {}, r"scales are \(3, 64\), not \(6, 64\)"),
  "part": ({}, {"qzeros": None}, "has no qzeros"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_told(case):
  settings_change, tensor_change, message = BROKEN[case]
  held, tool = _held(symmetric=False), CONVENTIONS["gptq"]
  settings = tool.settings({"a": held}, {"a": "a"}, ["lm_head"], "float16")
  tensors = {**tool.encode(held, settings), **tensor_change}
  tensors = {name: part for name, part in tensors.items() if part is not None}
  with pytest.raises(ValueError, match=message):
    tool.decode(tensors, {**settings, **settings_change})


def test_layers_are_taken_from_stacks():
  stack = jnp.stack([jnp.asarray(KERNEL), -jnp.asarray(KERNEL)])
  held = jax.device_get(quantize(stack, Scheme("int4", 32, scales="float16")))
  tool = CONVENTIONS["gptq"]
  settings = tool.settings({"a": held}, {"a": "a"}, ["lm_head"], "float16")
  for number in range(2):
    layer = jax.tree.map(lambda part: part[number], held)  # noqa: B023
    found = _gptq(tool.encode(layer, settings), 4, "gptq")
    np.testing.assert_array_equal(found, held.astype(jnp.float32)[number])
