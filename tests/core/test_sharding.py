"""Paths to mesh axes, told as whole tables."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from research.core import sharding, tree

F, T = ("fsdp",), ("tensor",)
SPECS = {
  "params/embed/embedding": ((8, 4), (T, F)),
  "params/positions/embedding": ((6, 4), (None, F)),
  "params/token_types/embedding": ((2, 4), (None, F)),
  "params/lm_head/kernel": ((4, 8), (F, T)),
  "params/pooler/kernel": ((4, 4), (F, None)),
  "params/classifier/out/kernel": ((4, 3), (F, None)),
  "params/classifier/out/bias": ((3,), (None,)),
  "params/masked_head/bias": ((8,), (T,)),
  "params/embed_norm/bias": ((4,), (None,)),
  "params/final_norm/scale": ((4,), (None,)),
  "params/layers/attention_norm/scale": ((3, 4), (None, None)),
  "params/layers/mlp_norm/bias": ((3, 4), (None, None)),
  "params/layers/attention/q_proj/kernel": ((3, 4, 4), (None, F, T)),
  "params/layers/attention/k_proj/bias": ((3, 4), (None, T)),
  "params/layers/attention/o_proj/kernel": ((3, 4, 4), (None, T, F)),
  "params/layers/attention/o_proj/bias": ((3, 4), (None, None)),
  "params/layers/mlp/gate_proj/kernel": ((3, 4, 6), (None, F, T)),
  "params/layers/mlp/up_proj/bias": ((3, 6), (None, T)),
  "params/layers/mlp/down_proj/kernel": ((3, 6, 4), (None, T, F)),
  "params/layers/mlp/down_proj/bias": ((3, 4), (None, None)),
  "params/encoder/relative_bias/embedding": ((8, 2), (None, None)),
  "params/decoder/layers/cross_attention_norm/scale": ((3, 4), (None, None)),
  "params/decoder/layers/cross_attention/o_proj/kernel": ((3, 4, 4), (None, T, F)),
  "params/decoder/final_norm/scale": ((4,), (None,)),
  "adapters/encoder/layers/mlp/up_proj/kernel/a": ((3, 4, 1), (None, F, None)),
  "adapters/layers/attention/q_proj/kernel/a": ((3, 4, 1), (None, F, None)),
  "adapters/layers/attention/q_proj/kernel/b": ((3, 1, 4), (None, None, T)),
  "adapters/layers/attention/q_proj/kernel/scale": ((3,), (None,)),
  "adapters/layers/mlp/down_proj/kernel/a": ((3, 6, 1), (None, T, None)),
  "adapters/layers/mlp/down_proj/kernel/b": ((3, 1, 4), (None, None, F)),
  "params/layers/mlp/up_proj/kernel/codes": ((3, 2, 6), (None, F, T)),
  "params/layers/mlp/up_proj/kernel/zero": ((3, 1, 6), (None, None, T)),
  "params/layers/mlp/up_proj/kernel/scale/codes": ((3, 4, 6), (None, F, T)),
  "params/layers/mlp/up_proj/kernel/scale/offset": ((3,), (None,)),
  "params/layers/attention/v_proj/kernel/each/0": ((4, 4), (F, T)),
  "params/layers/attention/v_proj/kernel/each/1/codes": ((2, 4), (F, T)),
  "params/layers/attention/v_proj/kernel/each/1/zero": ((1, 4), (None, T)),
  "params/layers/attention/v_proj/kernel/each/2/scale/codes": ((4, 4), (F, T)),
  "params/layers/attention/v_proj/kernel/each/2/scale/offset": ((), ()),
}
MESH = AbstractMesh((1, 2, 2, 1), sharding.MESH_AXES)


def _shapes(specs):
  return tree.unflatten(
    {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, (shape, _) in specs.items()}
  )


def test_parameters_adapters_and_their_moments():
  shapes = _shapes(SPECS)
  whole = {"trainable": shapes, "opt_state": {"adam": {"mu": shapes}}, "step": shapes["params"]}
  whole["step"] = jax.ShapeDtypeStruct((), jnp.int32)
  found = {p: s.spec for p, s in tree.flatten(sharding.shardings(MESH, whole)).items()}
  expected = {path: PartitionSpec(*spec) for path, (_, spec) in SPECS.items()}
  assert found == {
    "step": PartitionSpec(),
    **{f"trainable/{path}": spec for path, spec in expected.items()},
    **{f"opt_state/adam/mu/{path}": spec for path, spec in expected.items()},
  }


def test_a_teachers_parameters_lie_where_a_students_do():
  whole = _shapes({f"teacher/{path}": told for path, told in SPECS.items()})
  found = {p: s.spec for p, s in tree.flatten(sharding.shardings(MESH, whole)).items()}
  for path, (_, spec) in SPECS.items():
    assert found[f"teacher/{path}"] == PartitionSpec(*spec), path


def test_the_host_is_the_cpu_if_jax_has_it(monkeypatch):
  asked, devices = [], jax.local_devices

  def without_cpu(backend=None):
    asked.append(backend)
    if backend:
      raise RuntimeError("Unknown backend cpu")
    return devices()[-1:]

  for expected in (devices(backend="cpu")[0], devices()[-1]):
    with sharding.on_host():
      assert jnp.zeros(2).devices() == {expected}
      assert not sharding.is_spread()
    monkeypatch.setattr(jax, "local_devices", without_cpu)
  assert asked == ["cpu", None]


def test_an_unknown_parameter_and_an_uneven_split_are_errors():
  with pytest.raises(ValueError, match="no sharding rule for params/conv/kernel"):
    sharding.shardings(MESH, _shapes({"params/conv/kernel": ((2, 2), None)}))
  with pytest.raises(ValueError, match=r"params/lm_head/kernel \(4, 7\): 7 does not divide"):
    sharding.shardings(MESH, _shapes({"params/lm_head/kernel": ((4, 7), None)}))


def test_meshes():
  devices = jax.device_count()
  ones = dict.fromkeys(sharding.MESH_AXES, 1)
  assert dict(sharding.make_mesh({**ones, "fsdp": -1}).shape) == {**ones, "fsdp": devices}
  for wrong in ({"data": 3 * devices}, {"data": -1, "fsdp": -1}, {"data": -1, "fsdp": 5 * devices}):
    with pytest.raises(ValueError, match=f"does not fit {devices} devices"):
      sharding.make_mesh({**ones, **wrong})


def test_batches_are_split_by_rows_and_positions():
  spec = sharding.batch_sharding(sharding.make_mesh(dict.fromkeys(sharding.MESH_AXES, 1)), 2).spec
  assert spec == PartitionSpec(("data", "fsdp"), ("sequence",))


def test_activations_are_told_where_they_are_within_a_mesh_of_several_devices():
  x = jnp.zeros((4, 6, 3))
  assert not sharding.is_spread() and sharding.parts("batch") == 1
  assert sharding.constrain(x, "batch", "sequence", None) is x
  with jax.sharding.use_abstract_mesh(MESH):
    assert sharding.is_spread() and sharding.parts("batch") == sharding.parts("heads") == 2
    assert sharding.split_axes() == {"fsdp", "tensor"}
    # Only axes of several devices are named, and only where they divide.
    found = sharding.spec(x, "batch", "sequence", "heads")
    assert found == PartitionSpec(("fsdp",), None, None)
    assert sharding.spec(x, sharding.FREE, "mlp", None) == PartitionSpec(sharding.FREE, T, None)


def _mesh(processes):
  """Of devices that are no more than their process's number."""
  devices = np.array(processes, object)
  for place, process in np.ndenumerate(devices):
    devices[place] = types.SimpleNamespace(process_index=process)
  shape = dict(zip(sharding.MESH_AXES, devices.shape, strict=True))
  return types.SimpleNamespace(devices=devices, shape=shape)


@pytest.mark.parametrize(
  ("processes", "expected"),
  [
    ([[[[0]], [[0]]], [[[1]], [[1]]]], (1, 2)),  # rows alone
    ([[[[0], [1]], [[0], [1]]]], (0, 1)),  # heads alone
    ([[[[0, 1]]], [[[2, 3]]]], (0, 2)),  # both
    ([[[[1]], [[0]], [[1]], [[0]]]], (0, 2)),  # rows that are no neighbors
  ],
)
def test_processes_read_the_rows_of_their_devices(monkeypatch, processes, expected):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  assert sharding.share_of_process(_mesh(processes)) == expected


def test_rows_that_overlap_are_an_error():
  with pytest.raises(ValueError, match="splits rows across 2 processes unevenly"):
    sharding.share_of_process(_mesh([[[[0]], [[0]], [[1]]]]))
