import math
import struct

import gguf
import numpy as np
import pytest

from research.io import gguf_write
from research.io.gguf import read

ARCHITECTURE = {"general.architecture": "llama"}
RNG = np.random.default_rng(0)


def _half(value: float) -> tuple[bytes, float]:
  """float16 of a float32, and ggml's 1 / d of the float32."""
  return struct.pack("<e", value), float(np.float32(1) / np.float32(value)) if value else 0.0


def _plain(block: np.ndarray, kind: str) -> bytes:
  """One block of 32 as ggml's reference code makes it, a value at a time, in float32."""
  one = np.float32
  if kind == "Q8_0":
    scale = one(max(abs(x) for x in block)) / one(127)
    head, inverse = _half(scale)
    scaled = [float(x * one(inverse)) for x in block]
    codes = [int(math.copysign(math.floor(abs(x) + 0.5), x)) for x in scaled]
    return head + struct.pack("32b", *codes)
  if kind == "Q4_0":
    scale = max(block, key=abs) / one(-8)
    head, inverse = _half(scale)
    codes = [min(15, int(x * one(inverse) + one(8.5))) for x in block]
  else:
    low = min(block)
    scale = (max(block) - low) / one(15)
    head, inverse = _half(scale)
    head += struct.pack("<e", low)
    codes = [min(15, int((x - low) * one(inverse) + one(0.5))) for x in block]
  return head + bytes(codes[i] | codes[i + 16] << 4 for i in range(16))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_codes_are_those_of_the_plain_reference(kind):
  values = (RNG.standard_normal((24, 64)) * 10.0 ** RNG.integers(-3, 3, (24, 1))).astype(np.float32)
  values[0] = 0
  values[1, :32] = 0.25
  values[2] = np.round(values[2])  # ties
  expected = [b"".join(_plain(b, kind) for b in row.reshape(-1, 32)) for row in values]
  assert [row.tobytes() for row in gguf_write.quantize(values, kind)] == expected


@pytest.mark.parametrize("kind", gguf_write.TYPES)
def test_what_the_gguf_package_reads(tmp_path, kind):
  path = tmp_path / "x.gguf"
  tensors = {
    "blk.0.w": RNG.standard_normal((6, 96)).astype(np.float32),
    "norm": RNG.standard_normal(7).astype(np.float32),
    "blk.1.w": RNG.standard_normal((96, 32)).astype(np.float32).T[:, :64],  # not contiguous
  }
  metadata = ARCHITECTURE | {
    "a.int": 2**32 - 1,
    "a.float": 1e-5,
    "a.flag": False,
    "a.text": "žluťoučký 🐎",
    "a.empty": "",
    "a.strings": ["", "Ġ", "▁🐎"],
    "a.ints": [1, 2, 3],
    "a.floats": [0.5, 0.1],
  }
  types = {"blk.0.w": kind, "norm": "F32", "blk.1.w": kind}
  gguf_write.write(path, metadata, tensors, types)
  assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
  theirs = gguf.GGUFReader(path)
  for key, value in metadata.items():
    found = theirs.fields[key].contents()
    assert found == (pytest.approx(value, rel=1e-7) if "float" in key else value), key
  kinds = {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
  kinds |= {bool: gguf.GGUFValueType.BOOL, str: gguf.GGUFValueType.STRING}
  for key, value in metadata.items():
    if not isinstance(value, list):
      assert theirs.fields[key].types == [kinds[type(value)]]
  assert theirs.fields["a.ints"].types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]
  assert [tensor.name for tensor in theirs.tensors] == list(tensors)
  ours = read(path).tensors
  for tensor in theirs.tensors:
    number = gguf.GGMLQuantizationType[types[tensor.name]]
    values = tensors[tensor.name]
    assert tensor.tensor_type == number
    assert tensor.shape.tolist() == list(reversed(values.shape))
    codes = gguf.quants.quantize(np.ascontiguousarray(values), number)
    np.testing.assert_array_equal(tensor.data.view(np.uint8), codes.view(np.uint8))
    np.testing.assert_array_equal(ours[tensor.name], gguf.quants.dequantize(codes, number))
    step = {"F32": 0, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 0.02, "Q5": 0.25, "Q4": 0.4}
    bound = next(value for name, value in step.items() if types[tensor.name].startswith(name))
    assert np.abs(ours[tensor.name] - values).max() <= bound


def test_codes_come_back(smollm2_path):
  """What was rounded once is not rounded again: the real model's blocks, in each type it has."""
  tensors = read(smollm2_path).tensors
  seen = set()
  for name in ("blk.0.attn_q.weight", "blk.7.ffn_down.weight", "token_embd.weight"):
    kind, codes = tensors.stored(name)
    values = tensors[name][:2048]
    np.testing.assert_array_equal(gguf_write.quantize(values, kind), codes[:2048])
    seen.add(kind)
  assert seen == {"Q4_1", "Q8_0"}


def _write(path, array, kind="Q8_0", **metadata):
  gguf_write.write(path, ARCHITECTURE | metadata, {"blk.0.w": array}, {"blk.0.w": kind})


WRONG = {
  "rows": (np.ones((2, 40)), "Q4_0", "'blk.0.w' has rows of 40, .*Q4_0, 32 values.*F32, F16, BF16"),
  "type": (np.ones((2, 32)), "Q4_K", "'Q4_K' cannot be written; known: F32.*did you mean 'Q4_"),
  "nan": (np.array([[1.0, np.nan]]), "F32", "'blk.0.w' has values that are not finite"),
  "inf": (np.array([[1.0, -np.inf]]), "F32", "not finite"),
  "large": (np.full((1, 32), -1e5), "Q8_0", "reaches 100000, and Q8_0 is kept in float16"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_written(tmp_path, case):
  values, kind, message = WRONG[case]
  with pytest.raises(ValueError, match=message) as caught:
    _write(tmp_path / "x.gguf", values.astype(np.float32), kind)
  assert "\n" not in str(caught.value)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [-1, 2**32, [], ["a", 1], None])
def test_metadata_without_a_place(tmp_path, value):
  with pytest.raises(ValueError, match="'a' is"):
    _write(tmp_path / "x.gguf", np.ones((1, 32), np.float32), a=value)
  assert not list(tmp_path.iterdir())


def test_a_file_that_reads_otherwise_never_gets_its_name(tmp_path, monkeypatch):
  path = tmp_path / "x.gguf"
  path.write_text("what stood there")
  plain, calls = gguf_write.quantize, []

  def other(values, kind):
    calls.append(kind)
    return plain(values + (len(calls) == 1), kind)  # what is written is not what is meant

  monkeypatch.setattr(gguf_write, "quantize", other)
  with pytest.raises(RuntimeError, match="read back with other values of blk.0.w"):
    _write(path, np.eye(32, dtype=np.float32))
  assert path.read_text() == "what stood there"
  assert list(tmp_path.iterdir()) == [path]
