"""GPTQ against the greedy procedure that it stands for, written plainly; AWQ's clipping, too."""

import jax.numpy as jnp
import numpy as np
import pytest

from research.quant import awq
from research.quant.gptq import GPTQ
from research.quant.packing import pack, unpack
from research.quant.qarray import grid, quantize
from research.quant.scheme import Scheme

IN, OUT = 32, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, IN)) @ RNG.normal(size=(IN, IN)) * np.linspace(0.2, 2, IN)
X[:, 5] = 0
H = X.T @ X
W = RNG.normal(size=(IN, OUT)).astype(np.float32)


def _plain(w, h, scheme, order, group_of, grids, damping=0.01):
  """Optimal brain surgeon a row at a time (arXiv:2210.17323, eq. 2): the inverse is downdated.

  group_of: of each row in the order. grids: `group -> (scale, zero)`, or None to take them from
  what is left of the rows when their turn comes.
  """
  h, w = h.copy(), w.astype(np.float64).copy()
  dead = np.diagonal(h) == 0
  h[dead, dead] = 1
  w[dead] = 0
  h += damping * np.diagonal(h).mean() * np.eye(len(h))
  w, h = w[order], h[np.ix_(order, order)]
  inverse = np.linalg.inv(h)
  out, made = np.zeros_like(w), dict(grids or {})
  least, most = scheme.levels
  for i in range(len(w)):
    if group_of[i] not in made:
      rows = [j for j in range(len(w)) if group_of[j] == group_of[i]]
      scale, zero = grid(
        jnp.asarray(w[rows], jnp.float32), Scheme(scheme.kind, 0, scheme.symmetric)
      )
      made[group_of[i]] = scale[0], 0 if zero is None else zero[0]
    scale, zero = (np.asarray(x, np.float64) for x in made[group_of[i]])
    code = np.clip(np.round(w[i] / scale) + zero, least, most)
    out[i] = (code - zero) * scale
    error = (w[i] - out[i]) / inverse[i, i]
    w[i + 1 :] -= np.outer(inverse[i + 1 :, i], error)
    inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
  return out[np.argsort(order)]


def _grids(scheme):
  w = np.where(np.diagonal(H)[:, None] == 0, 0, W)
  scale, zero = grid(jnp.asarray(w, jnp.float32), scheme)
  zeros = jnp.zeros(scale.shape) if zero is None else zero
  return {i: (scale[i], zeros[i]) for i in range(scale.shape[0])}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("how", ["", "act_order", "static_groups"])
def test_it_is_the_plain_procedure(symmetric, group, how):
  scheme = Scheme("int4", group=group, symmetric=symmetric)
  act = how != ""
  held = GPTQ(act_order=act, static_groups=how == "static_groups").round(jnp.asarray(W), H, scheme)
  diagonal = np.where(np.diagonal(H) == 0, 1, np.diagonal(H))
  order = np.argsort(-diagonal, kind="stable") if act else np.arange(IN)
  size = group or IN
  static = group == 0 or how == "static_groups"
  group_of = (order if how == "static_groups" else np.arange(IN)) // size
  wanted = _plain(W, H, scheme, order, group_of, _grids(scheme) if static else None)
  assert (held.order is not None) == (how == "act_order" and group > 0)
  np.testing.assert_allclose(held.astype(jnp.float32), wanted, atol=2e-5)


@pytest.mark.parametrize(
  "scheme",
  [
    *(Scheme(kind, group=8) for kind in ("int4", "int3", "int2", "nf4", "fp4")),
    Scheme("nf4", group=8, scales="double"),
  ],
  ids=str,
)
def test_it_harms_outputs_less_than_rounding_to_nearest(scheme):
  w = jnp.asarray(W).at[5].set(0)

  def harm(held):
    return float(awq.error(held.astype(jnp.float32) - w, jnp.asarray(H, jnp.float32)))

  nearest, found = harm(quantize(w, scheme)), harm(GPTQ(act_order=True).round(w, H, scheme))
  assert found < 0.7 * nearest


@pytest.mark.parametrize(
  ("scheme", "how"),
  [
    (Scheme("int3", group=8, symmetric=False), {"act_order": True}),
    (Scheme("int3", group=8), {"act_order": True, "static_groups": True}),
    (Scheme("nf4", group=8), {}),
  ],
  ids=str,
)
def test_passes_leave_each_number_where_it_harms_least(scheme, how):
  """Each pass by itself does no harm, and after many no number alone could be better."""
  begun = GPTQ(**how).round(jnp.asarray(W), H, scheme)
  found = GPTQ(**how, passes=40).round(jnp.asarray(W), H, scheme)
  np.testing.assert_array_equal(found.scale, begun.scale)
  damped = H.copy()
  diagonal = np.where(np.diagonal(H) == 0, 1, np.diagonal(H))
  np.fill_diagonal(damped, diagonal + 0.01 * diagonal.mean())
  w = np.where(np.diagonal(H)[:, None] == 0, 0, W)

  def harm(held):
    e = np.asarray(held.astype(jnp.float32), np.float64) - w
    return (e * (damped @ e)).sum(axis=0)

  harms = [harm(GPTQ(**how, passes=n).round(jnp.asarray(W), H, scheme)).sum() for n in range(3)]
  assert harms[2] <= harms[1] <= harms[0]
  codes = unpack(found.codes, scheme.bits, -2)
  for row in range(0, IN, 5):
    for code in range(2**scheme.bits):
      other = pack(codes.at[row].set(code), scheme.bits, -2)
      tried = harm(found.replace(codes=other))
      assert np.all(tried >= harm(found) * (1 - 1e-5)), (row, code)


def test_ranges_go_by_the_size_of_inputs():
  """One input a hundred times the others': its numbers keep their place, whatever theirs is."""
  rng = np.random.default_rng(2)
  w = rng.normal(size=(IN, OUT)).astype(np.float32)
  w[3] *= 6
  sizes = np.where(np.arange(IN) == 3, 100.0, 1.0)
  products = np.diag(sizes**2)
  scheme = Scheme("int3", symmetric=False, fit="mse")
  held = GPTQ().round(jnp.asarray(w), products, scheme)
  found = np.abs(np.asarray(held.astype(jnp.float32)) - w)[3]
  blind = np.abs(np.asarray(quantize(jnp.asarray(w), scheme).astype(jnp.float32)) - w)[3]
  assert found.max() < 0.3 * blind.max()
  harm = lambda held: float(  # noqa: E731
    awq.error(held.astype(jnp.float32) - w, jnp.asarray(products, jnp.float32))
  )
  assert harm(held) < 0.1 * harm(quantize(jnp.asarray(w), scheme))


def test_what_it_cannot_round_is_told():
  with pytest.raises(ValueError, match="GPTQ rounds to integers"):
    GPTQ().round(jnp.asarray(W), H, Scheme("e4m3"))
  with pytest.raises(ValueError, match="not finite"):
    GPTQ().round(jnp.asarray(W), np.full((IN, IN), np.nan), Scheme("int4"))


def test_clipping_finds_the_best_of_its_ranges():
  """Against all ten ranges for every group, tried with the inputs themselves."""
  scheme = Scheme("int3", group=8, symmetric=False)
  held = awq.clipped(jnp.asarray(W), jnp.asarray(H, jnp.float32), scheme)
  found = np.asarray(held.astype(jnp.float32))
  for start in range(0, IN, 8):
    rows = slice(start, start + 8)
    losses = []
    for shrink in range(10):
      share = 1 - shrink / 20
      part = np.clip(W[rows], W[rows].min(axis=0) * share, W[rows].max(axis=0) * share)
      rounded = np.asarray(
        quantize(jnp.asarray(part), Scheme("int3", 0, False)).astype(jnp.float32)
      )
      losses.append(((X[:, rows] @ (rounded - W[rows])) ** 2).sum(axis=0))
    got = ((X[:, rows] @ (found[rows] - W[rows])) ** 2).sum(axis=0)
    np.testing.assert_allclose(got, np.min(losses, axis=0), rtol=1e-3)


def test_scales_are_the_best_of_those_tried():
  sizes = jnp.asarray(np.abs(X).mean(axis=0), jnp.float32)
  scheme, products = Scheme("int3", group=8), jnp.asarray(H, jnp.float32)
  scales = awq.search([jnp.asarray(W), jnp.asarray(W)], [scheme, None], products, sizes)

  def harm(scales):
    rounded = quantize(jnp.asarray(W) * scales[:, None], scheme).astype(jnp.float32)
    return float(awq.error(rounded / scales[:, None] - W, products))

  tried = []
  for ratio in range(20):
    s = jnp.maximum(sizes ** jnp.float32(ratio / 20), 1e-4)
    tried.append(harm(s / jnp.sqrt(s.max() * s.min())))
  # Numbers half way between two may fall either way.
  assert harm(scales) == pytest.approx(min(tried), rel=0.02)
  assert min(tried) < tried[0]
