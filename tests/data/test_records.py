"""Sources of files: JSONL and text, and their preparation; a TFDS builder."""

import importlib
import json
import textwrap

import pytest

from research.data import prepare, sources
from research.data.examples import BadRow


def write(path, *lines):
  path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
  return str(path)


@pytest.fixture
def cache(tmp_path):
  return str(tmp_path / "cache")


def test_jsonl_keeps_rows_order_and_line_numbers(tmp_path, cache):
  rows = [{"text": f"row {i}", "n": [i, {"é": None}]} for i in range(50)]
  lines = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)]
  lines[10:10] = ["", "{broken", b'{"text": "\xff"}', "[1]", '{"text": "\\ud800"}']
  path = write(tmp_path / "data.jsonl", *lines)
  source = sources.build({"name": "jsonl", "path": path, "cache": cache})
  assert [source[i] for i in range(len(source))] == rows
  assert [source.origin(i) for i in (0, 9, 10, 49)] == [0, 9, 15, 54]
  counted = {entry["reason"]: [i for i, _ in entry["rows"]] for entry in source.report.to_json()}
  assert counted == {"not JSON": [11], "not UTF-8": [12, 14], "not a JSON object": [13]}


@pytest.mark.parametrize(
  ("split_by", "texts"),
  [
    ("document", ["one\ntwo\n\nthree\n \n\nfour\n"]),
    ("paragraph", ["one\ntwo", "three", "four"]),
    ("line", ["one", "two", "three", "four"]),
  ],
)
def test_text_split_by(tmp_path, cache, split_by, texts):
  (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n\nthree\n \n\nfour\n")
  config = {"name": "text", "path": str(tmp_path / "a.txt"), "split_by": split_by, "cache": cache}
  source = sources.build(config)
  assert [source[i]["text"] for i in range(len(source))] == texts


def test_preparation_follows_the_content(tmp_path, cache):
  def prepared(file, line, **kwargs):
    return prepare.prepare(write(tmp_path / file, line), cache=cache, **kwargs)

  first = prepared("a.jsonl", '{"text": "x"}', file_format="jsonl")
  same = prepared("b.jsonl", '{"text": "x"}', file_format="jsonl", name="other")
  changed = prepared("a.jsonl", '{"text": "y"}', file_format="jsonl")
  as_text = prepared("a.jsonl", '{"text": "y"}', file_format="text")
  assert (first.fresh, same.fresh, changed.fresh, as_text.fresh) == (True, False, True, True)
  assert same.directory == first.directory
  assert len({p.fingerprint for p in (first, same, changed, as_text)}) == 3
  assert not list((tmp_path / "cache").glob(".incomplete-*"))


def test_a_killed_preparation_is_not_taken_for_a_finished_one(tmp_path, cache):
  path = write(tmp_path / "a.jsonl", '{"text": "x"}')
  fingerprint = prepare.fingerprint_of(tmp_path / "a.jsonl", "jsonl", "")
  (tmp_path / "cache" / ".incomplete-1" / "dataset" / "local_rows").mkdir(parents=True)
  prepared = prepare.prepare(path, file_format="jsonl", cache=cache)
  assert prepared.fresh and prepared.fingerprint == fingerprint


def test_damaged_records_are_named(tmp_path, cache):
  path = write(tmp_path / "data.jsonl", *(json.dumps({"text": str(i)}) for i in range(9)))
  prepared = prepare.prepare(path, file_format="jsonl", cache=cache)
  (file,) = prepared.directory.rglob("*.array_record-*")
  whole = file.read_bytes()
  block = 1 << 16  # whose header has a checksum
  for damaged in (whole[:block], whole[:block] + bytes(40) + whole[block + 40 :]):
    file.write_bytes(damaged)
    source = sources.build({"name": "jsonl", "path": path, "cache": cache})
    with pytest.raises(OSError, match="prepared data in .* are damaged .*remove them"):
      source[8]


def test_losing_the_race_to_another_process(tmp_path, cache, monkeypatch):
  path = write(tmp_path / "a.jsonl", '{"text": "x"}')
  build, winners = prepare._build, []

  def slow_build(*args):
    build(*args)
    if not winners:  # Meanwhile someone else prepares the same file.
      winners.append(None)
      winners[0] = prepare.prepare(path, file_format="jsonl", cache=cache)

  monkeypatch.setattr(prepare, "_build", slow_build)
  loser = prepare.prepare(path, file_format="jsonl", cache=cache)
  assert loser.directory == winners[0].directory and loser.rows == 1
  assert list((tmp_path / "cache").iterdir()) == [loser.directory]


def test_files_of_no_use(tmp_path, cache):
  with pytest.raises(FileNotFoundError, match="no data file at .*missing.jsonl"):
    sources.build({"name": "jsonl", "path": str(tmp_path / "missing.jsonl"), "cache": cache})
  for lines, why in ((["", " "], "it is empty"), (["{"], "1 row not JSON")):
    path = write(tmp_path / "bad.jsonl", *lines)
    with pytest.raises(ValueError, match=f"has no usable row; .*{why}"):
      sources.build({"name": "jsonl", "path": path, "cache": cache})
  assert not list((tmp_path / "cache").iterdir())


def test_cache_directory(monkeypatch, tmp_path):
  monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path))
  assert prepare.cache_directory() == tmp_path / "datasets"
  monkeypatch.delenv("RESEARCH_CACHE")
  assert prepare.cache_directory().parts[-3:] == (".cache", "research", "datasets")
  assert prepare.cache_directory(tmp_path / "x") == tmp_path / "x"


BUILDER = """
import numpy as np
import tensorflow_datasets as tfds

class TinyTalks(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    message = {"role": tfds.features.Text(), "content": tfds.features.Text()}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
      "messages": tfds.features.Sequence(message),
      "raw": tfds.features.Text(),
      "score": tfds.features.Scalar(np.int64),
    }), disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(20):
      messages = [{"role": "user", "content": f"é{i}"}, {"role": "assistant", "content": "ok"}]
      yield i, {"messages": messages, "raw": b"\\xff" if i == 3 else b"fine", "score": i}
"""


def test_tfds(tmp_path, monkeypatch):
  (tmp_path / "tiny_package").mkdir()
  (tmp_path / "tiny_package" / "__init__.py").touch()
  (tmp_path / "tiny_package" / "tiny_talks.py").write_text(textwrap.dedent(BUILDER))
  monkeypatch.syspath_prepend(str(tmp_path))
  importlib.import_module("tiny_package.tiny_talks")
  config = {"name": "tfds", "dataset": "tiny_talks", "data_dir": str(tmp_path / "data")}
  source = sources.build(config)
  again = sources.build(config)  # now from its files
  assert len(source) == len(again) == 20 and source.fingerprint == again.fingerprint
  messages = {"role": ["user", "assistant"], "content": ["é7", "ok"]}
  for each in (source, again):
    assert each[7] == {"messages": messages, "raw": "fine", "score": 7}
  with pytest.raises(BadRow, match="not UTF-8: column 'raw'"):
    source[3]
  part = sources.build({**config, "split": "train[:25%]"})
  assert len(part) == 5 and part.fingerprint != source.fingerprint
  with pytest.raises(ValueError, match="no TFDS data set 'tiny_talk'; did you mean 'tiny_talks'"):
    sources.build({**config, "dataset": "tiny_talk"})
