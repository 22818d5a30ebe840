"""Sources by their configs: mixtures, and what cannot be built."""

import ml_collections
import pytest

from research.data import sources


def test_mixture_lays_its_sources_end_to_end(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": "a0"}\n{\n{"text": "a2"}')
  (tmp_path / "b.jsonl").write_text('{"text": "b0"}')
  parts = [
    {"name": "jsonl", "path": str(tmp_path / file), "cache": str(tmp_path / "cache")}
    for file in ("a.jsonl", "b.jsonl")
  ]
  mixture = sources.build(
    ml_collections.ConfigDict({"name": "mixture", "sources": tuple(parts), "weights": (3, 1)})
  )
  assert [mixture[i]["text"] for i in range(len(mixture))] == ["a0", "a2", "b0"]
  assert [mixture.origin(i) for i in range(3)] == [0, 2, 0]
  assert mixture.weights == [3, 1] and mixture.report.count("not JSON") == 1
  assert sources.build({"name": "mixture", "sources": parts}).weights == [2, 1]
  warm = sources.build({"name": "mixture", "sources": parts, "temperature": 2.0})
  assert warm.weights == pytest.approx([2**0.5, 1])
  assert sources.build({"name": "mixture", "sources": parts, "tasks": ["a", "b"]}).tasks == (
    "a",
    "b",
  )
  for wrong, told in (
    ({"tasks": ["a"]}, r"as many different tasks, not \['a'\]"),
    ({"tasks": ["a", "a"]}, "as many different tasks"),
    ({"temperature": 0.0}, "temperature 0.0 is above 0"),
    ({"temperature": 2.0, "weights": [1, 1]}, "1 beside weights"),
  ):
    with pytest.raises(ValueError, match=told):
      sources.build({"name": "mixture", "sources": parts, **wrong})
  for weights in ([1], [1, 0]):
    with pytest.raises(ValueError, match="as many weights above 0"):
      sources.build({"name": "mixture", "sources": parts, "weights": weights})


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"name": "json", "path": "x"}, "unknown source 'json'; did you mean 'jsonl'"),
    ({"name": "jsonl", "pth": "x"}, "source 'jsonl' takes no 'pth'; did you mean 'path'"),
    ({"name": "jsonl"}, "source 'jsonl' needs path"),
    ({"path": "x"}, "a source is a mapping with a name"),
    ({"name": "text", "path": "x", "split_by": "lines"}, "'lines' is none .* mean 'line'"),
  ],
)
def test_build_refuses(config, message):
  with pytest.raises(ValueError, match=message):
    sources.build(config)
