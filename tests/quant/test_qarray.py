"""Rounding, packing and what `QArray`s stand for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import quant
from research.core.dot import dot
from research.quant import codebooks, qarray
from research.quant.packing import pack, unpack
from research.quant.scheme import KINDS, Scheme

RNG = np.random.default_rng(0)
IN, OUT = 64, 24


def _values(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing_is_undone(bits, axis):
  codes = RNG.integers(0, 2**bits, (3, 16, 8)).astype(np.uint8)
  packed = pack(jnp.asarray(codes), bits, axis)
  assert packed.dtype == jnp.uint8
  assert packed.size == codes.size * bits // 8
  np.testing.assert_array_equal(unpack(packed, bits, axis), codes)


def test_three_bits_lie_in_one_row_of_bits():
  codes = RNG.integers(0, 8, 8)
  packed = np.asarray(pack(jnp.asarray(codes[:, None]), 3, -2))[:, 0]
  word = int.from_bytes(packed.tobytes(), "little")
  assert [(word >> (3 * i)) & 7 for i in range(8)] == codes.tolist()


@pytest.mark.parametrize(
  "scheme",
  [
    Scheme("int3", group=16),
    Scheme("int4", symmetric=False),
    Scheme("nf4", group=16),
    Scheme("int8", group=-1),
    Scheme("int2", group=16, symmetric=False, scales="float16"),
  ],
  ids=str,
)
def test_a_fit_is_the_best_share_of_the_range(scheme):
  """Of 32, for each group by itself: against all of them, one at a time, on numbers with tails."""
  values = _values(IN, OUT) ** 3
  fitted = dataclasses.replace(scheme, fit="mse")
  found = np.asarray(qarray.quantize(values, fitted).astype(jnp.float32))
  size = {0: IN, -1: IN}.get(scheme.group, scheme.group)
  low, high = (f(values.reshape(-1, size, OUT), axis=1) for f in (jnp.min, jnp.max))
  if scheme.group == -1:
    low, high = low.min(keepdims=True), high.max(keepdims=True)
  tried = []
  for share in 1 - np.arange(32) / 48:
    grid = qarray.between(low * share, high * share, scheme)
    rounded = qarray.encode(values, *grid, scheme).astype(jnp.float32)
    squares = np.square(np.asarray(rounded - values)).reshape(-1, size, OUT).sum(axis=1)
    tried.append(squares.sum(keepdims=True) if scheme.group == -1 else squares)
  own = np.square(found - np.asarray(values)).reshape(-1, size, OUT).sum(axis=1)
  own = own.sum(keepdims=True) if scheme.group == -1 else own
  np.testing.assert_allclose(own, np.min(tried, axis=0), rtol=1e-5)
  assert own.sum() < 0.98 * tried[0].sum() or scheme.kind == "int8"


SCHEMES = [
  *(Scheme(kind, group=16) for kind in KINDS),
  *(Scheme(kind) for kind in ("int8", "int3", "e4m3")),
  *(Scheme(f"int{bits}", group=16, symmetric=False) for bits in (8, 4, 3, 2)),
  Scheme("int8", group=-1),
  Scheme("int4", group=16, scales="float16"),
  Scheme("int4", symmetric=False),
  Scheme("nf4", group=16, scales="double"),
]


def _error_and_limit(group, rounded, scheme):
  """Of numbers that share a scale: how far they were moved, and how far they may be."""
  error, absmax = np.abs(group - rounded), np.abs(group).max()
  if scheme.kind in ("nf4", "fp4"):
    grid = codebooks.values(scheme.kind) * absmax
    slack = 0.02 * absmax if scheme.scales == "double" else 1e-6
    return error, np.abs(group[:, None] - grid).min(axis=1) + slack
  if scheme.kind in ("e4m3", "e5m2"):
    return error, np.abs(group) * (1 / 16 if scheme.kind == "e4m3" else 1 / 8) + 2e-3
  if scheme.symmetric:
    # The largest number can be half a step beyond the grid's last.
    return error, 2 * absmax / (2**scheme.bits - 1) * 0.51
  span = max(group.max(), 0) - min(group.min(), 0)
  return error, span / (2**scheme.bits - 1) * 1.002  # zero points are rounded, too


TABLES = [Scheme("nf4", group=16, scales="double"), Scheme("int3", group=16), Scheme("int8")]


@pytest.mark.parametrize(
  ("scheme", "axis"), [*((s, -2) for s in SCHEMES), *((s, -1) for s in TABLES)], ids=str
)
def test_numbers_are_within_half_a_step(scheme, axis):
  """And groups of zeros stay that; what is on the grid stays where it is."""
  values = _values(2, IN, OUT) if axis == -2 else _values(1, OUT, IN)
  zeros = (0, slice(0, 16), 3) if axis == -2 else (0, 3, slice(0, 16))
  values = values.at[zeros].set(0)
  held = qarray.quantize(values, scheme, axis)
  assert held.shape == values.shape
  assert held.dtype == jnp.float32
  found = held.astype(jnp.float32)
  np.testing.assert_array_equal(found[zeros], 0)
  pair = [np.asarray(x) for x in (values, found)]
  if axis == -2:
    pair = [x.swapaxes(-1, -2) for x in pair]
  size = {0: IN, -1: IN * OUT}.get(scheme.group, scheme.group)
  for group, rounded in zip(*(x.reshape(-1, size) for x in pair), strict=True):
    error, limit = _error_and_limit(group, rounded, scheme)
    assert (error <= limit).all()
  if scheme.scales != "double":
    again = qarray.encode(found, held.scale, held.zero, scheme, axis)
    np.testing.assert_array_equal(again.astype(jnp.float32), found)


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16])
def test_products_are_those_of_the_numbers(kind):
  kernel, x = _values(IN, OUT), _values(5, IN).astype(kind)
  held = qarray.quantize(kernel, Scheme("int4", group=16, symmetric=False))

  def through(kernel):
    return jax.value_and_grad(lambda x: jnp.sum(jnp.sin(dot(x, kernel))))(x)

  (value, gradient), (expected, wanted) = through(held), through(held.astype(jnp.float32))
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_array_equal(gradient, wanted)


def test_a_table_gives_rows_and_logits():
  held = qarray.quantize(_values(10, IN), Scheme("int8", group=16), -1)
  plain = held.astype(jnp.float32)
  ids = jnp.asarray([[3, 9], [0, 3]])
  np.testing.assert_array_equal(held.rows(ids), plain[ids])
  x = _values(2, IN)
  np.testing.assert_allclose(held.product(x), x @ plain.T, rtol=2e-5)


def test_scales_are_divided_as_others_do():
  """Where codes should be others', scales are, to the bit: numpy's division, not a product."""
  values = _values(256, 64)
  held = qarray.quantize(values, Scheme("int4"))
  np.testing.assert_array_equal(
    held.scale[0], np.abs(np.asarray(values)).max(axis=0) / np.float32(7.5)
  )
  codes = np.clip(np.round(np.asarray(values) * (1 / np.asarray(held.scale))), -8, 7)
  np.testing.assert_array_equal(held.integers(), codes)


def test_groups_in_another_order():
  values, order = _values(IN, 4), jnp.asarray(RNG.permutation(np.arange(IN) // 16), jnp.int32)
  scheme = Scheme("int4", group=16)
  sort = jnp.argsort(order, stable=True)  # by group the rows are those of plain groups
  plain = qarray.quantize(values[sort], scheme)
  held = qarray.encode(values, plain.scale, plain.zero, scheme, order=order)
  np.testing.assert_array_equal(held.astype(jnp.float32)[sort], plain.astype(jnp.float32))


PARAMS = {
  "embed": {"embedding": _values(10, IN)},
  "layers": {
    "attention": {"q_proj": {"kernel": _values(2, IN, IN), "bias": _values(2, IN)}},
    "mlp": {"up_proj": {"kernel": _values(2, IN, OUT)}},
  },
}


def test_rules_choose_by_path():
  rules = (
    {"target": ".*/q_proj/kernel", "kind": "none"},
    {"target": "layers/.*/kernel", "kind": "int4", "group": 32},
    {"target": "embed/embedding", "kind": "int8"},
  )
  held = quant.quantize(PARAMS, rules)
  attention, mlp = held["layers"]["attention"], held["layers"]["mlp"]
  assert attention["q_proj"]["kernel"] is PARAMS["layers"]["attention"]["q_proj"]["kernel"]
  assert mlp["up_proj"]["kernel"].scheme == Scheme("int4", group=32)
  assert held["embed"]["embedding"].axis == -1
  size = quant.size(held)
  assert size.dense - size.held == 2 * IN * OUT * (4 - 0.5 - 4 / 32) + 10 * IN * 3 - 10 * 4
  assert jax.tree.structure(quant.dequantize(held)) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize(
  ("rule", "told"),
  [
    ({"kind": "int5"}, "'int5' is unknown; did you mean"),
    ({"kind": "int4", "group": 48}, "a group of 48 does not divide 64 inputs; 64, 32, 16, 8 would"),
    ({"kind": "nf4"}, "give a group, as of 64"),
    ({"kind": "nf4", "group": 32, "symmetric": False}, "no zero point"),
    ({"kind": "int3", "group": 20}, "fills no whole bytes; 8 do"),
    ({"kind": "int4", "scales": "half"}, "scales 'half' are unknown"),
    ({"kind": "int4", "grop": 64}, "takes no 'grop'; did you mean 'group'"),
    ({"kind": "int4", "group": 32, "scales": "double", "symmetric": False}, "symmetric groups"),
  ],
)
def test_what_cannot_be_is_told(rule, told):
  with pytest.raises(ValueError, match=told):
    quant.quantize(PARAMS, ({"target": "layers/mlp/.*", **rule},))


def test_a_table_has_scales_of_its_rows():
  with pytest.raises(ValueError, match="looked up row by row"):
    quant.quantize(PARAMS, ({"target": "embed/embedding", "kind": "int8", "group": -1},))


def test_what_is_not_finite_is_told():
  broken = {"layers": {"mlp": {"up_proj": {"kernel": jnp.full((2, 8, 8), jnp.nan)}}}}
  with pytest.raises(
    ValueError, match="layers/mlp/up_proj/kernel' has numbers that are not finite"
  ):
    quant.quantize(broken, ({"target": ".*", "kind": "int8"},))


def test_a_rule_that_matches_nothing_is_told():
  with pytest.raises(ValueError, match="matches none"):
    quant.quantize(PARAMS, ({"target": "layers/.*/bias", "kind": "int8"},))


@pytest.mark.parametrize(
  "scheme",
  [
    Scheme("int4", group=16, symmetric=False, scales="float16"),
    Scheme("nf4", group=16, scales="double"),
    Scheme("int8"),
  ],
  ids=str,
)
def test_scales_learn_as_factors_of_the_numbers(scheme):
  """As if the kernel were made of them by plain operations; they act in their own type."""
  x = _values(5, IN)
  held = qarray.quantize(_values(IN, OUT), scheme)
  if scheme.scales == "float16":
    held = held.replace(scale=held.scale.astype(jnp.float32) * 1.0001)
    narrow = held.replace(scale=held.scale.astype(jnp.float16))
    np.testing.assert_array_equal(held.astype(jnp.float32), narrow.astype(jnp.float32))
    np.testing.assert_array_equal(held.held().scale, narrow.scale)

  def loss(multiply):
    return lambda scale: jnp.sum(jnp.sin(multiply(held.replace(scale=scale))))

  by_product = jax.grad(loss(lambda kernel: dot(x, kernel)), allow_int=True)(held.scale)
  by_numbers = jax.grad(loss(lambda kernel: x @ kernel.astype(jnp.float32)), allow_int=True)
  for one, other in zip(*map(jax.tree.leaves, (by_product, by_numbers(held.scale))), strict=True):
    if one.dtype != jax.dtypes.float0:
      np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-2)
      assert np.any(one)
