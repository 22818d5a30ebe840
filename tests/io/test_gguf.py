import struct

import gguf
import numpy as np
import pytest

from research.io.gguf import read

QUANTIZED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32")
# Types that the package reads but cannot write: any bytes are a valid block of these.
READ_ONLY = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


def _write(path, tensors=(), **metadata):
  """A file of `tensors` (name, raw array, quantized type or None); `__` in keys is a dot."""
  writer = gguf.GGUFWriter(path, "llama")
  for key, value in metadata.items():
    key = key.replace("__", ".")
    if isinstance(value, list):
      writer.add_array(key, value)
    elif isinstance(value, bool):
      writer.add_bool(key, value)
    elif isinstance(value, str):
      writer.add_string(key, value)
    elif isinstance(value, float):
      writer.add_float64(key, value)
    else:
      writer.add_int64(key, value)
  for name, array, kind in tensors:
    writer.add_tensor(name, array, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def test_metadata_as_the_gguf_package_reads_it(tmp_path):
  path = tmp_path / "x.gguf"
  values = {
    "a__int": -(2**40),
    "a__float": 1e-5,
    "a__flag": True,
    "a__text": "žluťoučký 🐎",
    "a__strings": ["", "a", "Ġ", "▁🐎"],
    "a__ints": [1, -2, 3],
    "a__floats": [0.5, -1.25],
    "a__flags": [True, False],
    "a__nested": [[1, 2], [3]],
  }
  _write(path, **values)
  ours = read(path).metadata
  for key, value in values.items():
    assert ours[key.replace("__", ".")] == value
  assert type(ours["a.flag"]) is bool
  for name, field in gguf.GGUFReader(path).fields.items():
    if not name.startswith("GGUF.") and name != "a.nested":  # which the package flattens
      assert ours[name] == field.contents(), name


@pytest.mark.parametrize("kind", QUANTIZED + READ_ONLY)
def test_tensors_are_those_of_the_gguf_package(tmp_path, kind):
  kind = gguf.GGMLQuantizationType[kind]
  rng = np.random.default_rng(0)
  out_features, in_features = 6, 512
  if kind.name in QUANTIZED:
    values = rng.standard_normal((out_features, in_features)).astype(np.float32)
    raw = gguf.quants.quantize(values, kind)
  else:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    # Small bytes keep the float16 scales among them finite.
    raw = rng.integers(0, 60, (out_features, in_features // block * size), dtype=np.uint8)
  norm = rng.standard_normal(7).astype(np.float32)
  _write(tmp_path / "x.gguf", [("norm", norm, None), ("blk.0.w", raw, kind)])
  tensors = read(tmp_path / "x.gguf").tensors
  assert list(tensors) == ["norm", "blk.0.w"]
  assert "blk.0.w" in tensors
  assert len(tensors) == 2
  ours = tensors["blk.0.w"]
  assert ours.shape == (out_features, in_features)
  assert ours.dtype == np.float32
  np.testing.assert_array_equal(ours, gguf.quants.dequantize(raw, kind))
  np.testing.assert_array_equal(tensors["norm"], norm)
  if kind.name in QUANTIZED:  # rows are outputs: the orientation survives the way there and back
    assert np.corrcoef(ours.ravel(), values.ravel())[0, 1] > 0.99


def test_the_real_model(smollm2_path):
  ours = read(smollm2_path)
  assert ours.metadata["general.architecture"] == "llama"
  assert len(ours.metadata["tokenizer.ggml.tokens"]) == 49152
  assert len(ours.tensors) == 272
  assert ours.tensors["token_embd.weight"].shape == (49152, 576)
  assert ours.tensors["blk.29.ffn_down.weight"].shape == (576, 1536)
  assert ours.tensors["blk.0.attn_k.weight"].shape == (192, 576)
  # A language model's embeddings: finite, centred, small.
  embedding = ours.tensors["token_embd.weight"]
  assert np.isfinite(embedding).all()
  assert abs(embedding.mean()) < 0.01 < embedding.std() < 1


def test_unsupported_type_names_tensor_and_type(tmp_path):
  _write(tmp_path / "x.gguf", [("ids", np.arange(4, dtype=np.int32), None)])
  tensors = read(tmp_path / "x.gguf").tensors  # opening is fine: nobody may ask for it
  with pytest.raises(ValueError, match="'ids' has type I32"):
    tensors["ids"]


def test_unknown_name_suggests_the_nearest(tmp_path):
  _write(tmp_path / "x.gguf", [("token_embd.weight", np.zeros(4, np.float32), None)])
  with pytest.raises(KeyError, match=r"did you mean 'token_embd\.weight'"):
    read(tmp_path / "x.gguf").tensors["tok_embd.weight"]


def test_alignment_is_read_from_the_metadata(tmp_path):
  path = tmp_path / "x.gguf"
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_custom_alignment(128)
  writer.data_alignment = 128
  values = {name: np.full(3, i, np.float32) for i, name in enumerate("ab")}
  for name, value in values.items():
    writer.add_tensor(name, value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  tensors = read(path).tensors
  for name, value in values.items():
    np.testing.assert_array_equal(tensors[name], value)


def test_missing_and_foreign_files(tmp_path):
  with pytest.raises(FileNotFoundError, match="no such GGUF file"):
    read(tmp_path / "x.gguf")
  (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 something else")
  with pytest.raises(ValueError, match="does not start with 'GGUF'"):
    read(tmp_path / "x.gguf")
  (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack(">I", 3) + bytes(64))
  with pytest.raises(ValueError, match="GGUF version 50331648"):
    read(tmp_path / "x.gguf")


def test_a_file_cut_short_anywhere_is_an_error(tmp_path):
  path = tmp_path / "x.gguf"
  _write(path, [("w", np.arange(64, dtype=np.float32), None)], a__strings=["x", "yy"], a__int=1)
  whole = path.read_bytes()
  for size in range(4, len(whole) - 1, 7):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match="cut short|ends within the header") as caught:
      read(path)
    assert "\n" not in str(caught.value)


def _one_tensor(kind: int, columns: int) -> bytes:
  name = b"weight"
  head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0)
  record = struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, columns, kind, 0)
  return head + record + bytes(4096)


@pytest.mark.parametrize(
  ("kind", "columns", "message"),
  [(999, 32, "'weight' has unknown type 999"), (2, 33, "rows of 33, no multiple of 32")],
)
def test_broken_records(tmp_path, kind, columns, message):
  (tmp_path / "x.gguf").write_bytes(_one_tensor(kind, columns))
  with pytest.raises(ValueError, match=message):
    read(tmp_path / "x.gguf")
