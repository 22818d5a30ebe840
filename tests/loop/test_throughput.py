"""FLOPs of training against the counts that papers give."""

import types

import jax
import jax.numpy as jnp
import pytest

from research.core import matrix, tree
from research.loop import throughput
from research.quant.qarray import quantize
from research.quant.scheme import Scheme

D, F, V, L = 8, 12, 20, 3
PARAMS = {
  "params/embed/embedding": (V, D),
  "params/layers/mlp/up_proj/kernel": (L, D, F),
  "params/layers/mlp/up_proj/bias": (L, F),
  "params/layers/mlp/down_proj/kernel": (L, F, D),
}
ADAPTERS = {"adapters/layers/mlp/up_proj/kernel/a": (L, D, 2)}
MATRICES = L * 2 * D * F
SCORES = 2 * L * D  # of attention, a token and a token of length


def _tree(shapes):
  flat = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
  return {"params": {}, "adapters": {}, **tree.unflatten(flat)}


def _forward(length):
  return 2 * (MATRICES + V * D) + SCORES * length


def test_everything_in_training_is_six_a_weight():
  variables = _tree(PARAMS)
  flops = throughput.train_flops_per_token(_forward, variables, variables)
  assert flops(0.0) == 6 * (MATRICES + V * D)
  assert flops(10.0) - flops(0.0) == 3 * SCORES * 10


def test_a_frozen_base_is_four_a_weight_and_its_adapters_six():
  variables = _tree({**PARAMS, **ADAPTERS})
  trainable, _ = tree.partition(variables, lambda path, _: path.startswith("adapters"))
  flops = throughput.train_flops_per_token(_forward, variables, trainable)
  assert flops(0.0) == 4 * (MATRICES + V * D) + 6 * L * D * 2


def test_a_teacher_adds_its_forward_pass():
  variables = _tree(PARAMS)
  config = types.SimpleNamespace(flops_per_token=lambda length: 1000.0 + length)
  alone, beside = (
    throughput.train_flops_per_token(_forward, variables, variables, teacher=teacher)
    for teacher in (None, types.SimpleNamespace(config=config))
  )
  assert beside(10.0) - alone(10.0) == 1010.0


def test_a_lookup_table_beside_a_head_is_no_matrix():
  variables = _tree({**PARAMS, "params/lm_head/kernel": (D, V)})
  flops = throughput.train_flops_per_token(_forward, variables, variables)
  assert flops(0.0) == 6 * (MATRICES + V * D)


def test_the_peak_is_a_rate_that_a_product_could_have():
  # From a slow core to a rack of accelerators; and above what one product then reaches.
  assert 1e9 < throughput.peak_flops() < 1e18


@pytest.mark.parametrize(("kind", "flops"), [("NVIDIA H100 80GB HBM3", 989e12), ("TPU v4", 275e12)])
def test_known_devices_are_looked_up(monkeypatch, kind, flops):
  device = type("Device", (), {"device_kind": kind})()
  monkeypatch.setattr(jax, "devices", lambda: [device])
  assert throughput.peak_flops() == flops * jax.device_count()


def test_scales_that_train_cost_the_gradient_of_their_kernel():
  path = "layers/mlp/up_proj/kernel"
  dense = _tree(PARAMS)
  kernel = matrix.flatten(dense["params"])[path]
  held = jax.eval_shape(lambda x: quantize(x, Scheme("int4", group=4)), kernel)
  variables = _tree(PARAMS)
  variables["params"]["layers"]["mlp"]["up_proj"]["kernel"] = held
  of_scales, _ = tree.partition(variables, lambda p, _: p == f"params/{path}/scale")
  of_kernel, _ = tree.partition(dense, lambda p, _: p == f"params/{path}")
  found, expected = (
    throughput.train_flops_per_token(_forward, *each)(0.0)
    for each in ((variables, of_scales), (dense, of_kernel))
  )
  assert found == expected
