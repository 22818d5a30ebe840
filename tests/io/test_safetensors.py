import json
import struct

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

from research.io.safetensors import read, write, write_sharded

TORCH_DTYPES = (
  torch.float64,
  torch.float32,
  torch.float16,
  torch.bfloat16,
  torch.float8_e4m3fn,
  torch.float8_e5m2,
  torch.int64,
  torch.int32,
  torch.int16,
  torch.int8,
  torch.uint8,
  torch.bool,
  torch.complex64,
)


def _bits(array) -> bytes:
  return np.ascontiguousarray(array).tobytes()


def _torch_bits(tensor: torch.Tensor) -> bytes:
  return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _torch_tensors() -> dict[str, torch.Tensor]:
  generator = torch.Generator().manual_seed(0)
  values = torch.randn(3, 5, generator=generator) * 3
  tensors = {str(dtype).removeprefix("torch."): values.to(dtype) for dtype in TORCH_DTYPES}
  return tensors | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}


def test_reads_what_torch_wrote(tmp_path):
  tensors = _torch_tensors()
  safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
  ours = read(tmp_path / "x.safetensors")
  assert set(ours) == set(tensors)
  assert len(ours) == len(tensors)
  for name, tensor in tensors.items():
    assert ours[name].shape == tuple(tensor.shape), name
    assert ours[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
    assert _bits(ours[name]) == _torch_bits(tensor), name


def test_torch_reads_what_we_wrote(tmp_path):
  tensors = _torch_tensors()
  safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors")
  write(tmp_path / "ours.safetensors", read(tmp_path / "theirs.safetensors"))
  back = safetensors.torch.load_file(tmp_path / "ours.safetensors")
  assert set(back) == set(tensors)
  for name, tensor in tensors.items():
    assert back[name].dtype == tensor.dtype
    assert back[name].shape == tensor.shape
    assert _torch_bits(back[name]) == _torch_bits(tensor), name


def test_metadata_is_pt_unless_given(tmp_path):
  write(tmp_path / "a.safetensors", {"x": np.zeros(2, np.float32)})
  write(tmp_path / "b.safetensors", {"x": np.zeros(2, np.float32)}, {"rank": "8"})
  for name, expected in (("a", {"format": "pt"}), ("b", {"rank": "8"})):
    with safetensors.safe_open(tmp_path / f"{name}.safetensors", "np") as file:
      assert file.metadata() == expected


def test_any_memory_layout_and_jax_arrays(tmp_path):
  grid = np.arange(24, dtype=np.float32).reshape(4, 6)
  tensors = {
    "transposed": grid.T,
    "strided": grid[::2, 1::2],
    "reversed": grid[::-1],
    "jax": jnp.asarray(grid, jnp.bfloat16),
  }
  write(tmp_path / "x.safetensors", tensors)
  theirs = safetensors.numpy.load_file(tmp_path / "x.safetensors")
  for name, value in tensors.items():
    np.testing.assert_array_equal(theirs[name], np.asarray(value))


def test_tensors_are_aligned_and_views_are_read_only(tmp_path):
  write(
    tmp_path / "x.safetensors",
    {"a": np.ones(3, np.int8), "b": np.ones(2, np.float64), "c": np.ones(1, ml_dtypes.bfloat16)},
  )
  for array in read(tmp_path / "x.safetensors").values():
    assert array.flags.aligned
    assert not array.flags.writeable


def _model(count: int = 5) -> dict[str, np.ndarray]:
  return {f"layer.{i}": np.full((10, 10), i, np.float32) for i in range(count)}  # 400 bytes each


def test_small_model_is_one_file(tmp_path):
  write_sharded(tmp_path / "new" / "model", _model())
  assert [p.name for p in (tmp_path / "new" / "model").iterdir()] == ["model.safetensors"]
  assert set(read(tmp_path / "new" / "model")) == set(_model())


def test_shards_and_index(tmp_path):
  write_sharded(tmp_path, _model(), max_shard_bytes=900)
  names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
  assert sorted(p.name for p in tmp_path.iterdir()) == [*names, "model.safetensors.index.json"]
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == 5 * 400
  assert index["weight_map"] == {f"layer.{i}": names[i // 2] for i in range(5)}
  ours = read(tmp_path)
  assert set(ours) == set(_model())
  for name, value in _model().items():
    np.testing.assert_array_equal(ours[name], value)


def test_transformers_loads_our_shards(tmp_path):
  import transformers

  config = transformers.LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
  )
  model = transformers.LlamaForCausalLM(config)
  state = {name: value.numpy() for name, value in model.state_dict().items()}
  config.save_pretrained(tmp_path)
  write_sharded(tmp_path, state, max_shard_bytes=4000)
  assert (tmp_path / "model.safetensors.index.json").exists()
  loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
  for name, value in loaded.state_dict().items():
    np.testing.assert_array_equal(value.numpy(), state[name])


def test_a_tensor_above_the_limit_has_its_own_shard(tmp_path):
  tensors = {"a": np.zeros(10), "huge": np.zeros(1000), "b": np.zeros(10)}
  write_sharded(tmp_path, tensors, max_shard_bytes=200)
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  assert len(set(index["weight_map"].values())) == 3


@pytest.mark.parametrize("limits", [(900, 10**9), (10**9, 900), (500, 900)])
def test_rewriting_leaves_nothing_of_the_old_model(tmp_path, limits):
  write_sharded(tmp_path, _model(5), max_shard_bytes=limits[0])
  (tmp_path / "config.json").write_text("{}")
  write_sharded(tmp_path, {"other": np.ones((10, 10)), **_model(2)}, max_shard_bytes=limits[1])
  ours = read(tmp_path)
  assert set(ours) == {"other", "layer.0", "layer.1"}
  fresh = tmp_path / "fresh"
  write_sharded(fresh, {"other": np.ones((10, 10)), **_model(2)}, max_shard_bytes=limits[1])
  expected = {p.name for p in fresh.iterdir()} | {"config.json", "fresh"}
  assert {p.name for p in tmp_path.iterdir()} == expected


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
  path = tmp_path / "x.safetensors"
  write(path, {"x": np.zeros(2)})

  class Broken:
    dtype = np.dtype(np.float32)

    def __array__(self, dtype=None, copy=None):
      raise OSError("disk gone")

  with pytest.raises(OSError, match="disk gone"):
    write(path, {"x": np.ones(2), "y": Broken()})
  np.testing.assert_array_equal(read(path)["x"], np.zeros(2))
  assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_write_that_is_interrupted_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "x.safetensors"
  write(path, {"x": np.zeros(2)})

  def refuse(*_):
    raise OSError("no rename")

  monkeypatch.setattr("pathlib.Path.replace", refuse)
  with pytest.raises(OSError, match="no rename"):
    write(path, {"x": np.ones(2)})
  np.testing.assert_array_equal(read(path)["x"], np.zeros(2))
  assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_missing_files(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
    read(tmp_path)
  with pytest.raises(FileNotFoundError, match="no such file or directory"):
    read(tmp_path / "nowhere")
  write_sharded(tmp_path, _model(), max_shard_bytes=900)
  (tmp_path / "model-00002-of-00003.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match=r"model-00002-of-00003\.safetensors, which is not"):
    read(tmp_path)


def test_index_that_names_a_tensor_its_shard_lacks(tmp_path):
  write_sharded(tmp_path, _model(), max_shard_bytes=900)
  path = tmp_path / "model.safetensors.index.json"
  index = json.loads(path.read_text())
  index["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
  path.write_text(json.dumps(index))
  with pytest.raises(ValueError, match="'ghost' is in model-00001-of-00003.*lacks it"):
    read(tmp_path)


def test_an_unknown_name_suggests_the_nearest(tmp_path):
  write_sharded(tmp_path, _model())
  with pytest.raises(KeyError, match=r"no tensor 'layers\.1'; did you mean 'layer\.1'"):
    read(tmp_path)["layers.1"]


def _raw(header: object, size: int) -> bytes:
  encoded = json.dumps(header).encode()
  return struct.pack("<Q", len(encoded)) + encoded + bytes(size)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"abc", "has 3 bytes"),
    (struct.pack("<Q", 10**6) + b"{}", "no complete header"),
    (struct.pack("<Q", 4) + b"{bad", "header is not JSON"),
    (_raw({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 4), "cut short: 'x'"),
    (_raw({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, 1), "dtype F4"),
    (_raw({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, 8), "8 bytes of 'x'"),
  ],
)
def test_broken_files(tmp_path, content, message):
  path = tmp_path / "x.safetensors"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message) as caught:
    read(path)
  assert "\n" not in str(caught.value)


def test_a_dtype_that_the_format_lacks(tmp_path):
  with pytest.raises(ValueError, match="'x' has dtype int4"):
    write(tmp_path / "x.safetensors", {"x": np.zeros(2, ml_dtypes.int4)})
