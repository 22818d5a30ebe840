"""Templates against the rows that they render."""

import json

import pytest

from research.data import sources
from research.data.examples import BadRow

COLUMNS = {"prompt": "<translate> {en} {{as is}}\n", "completion": "{de:>6}"}


@pytest.fixture
def build(tmp_path):
  def build(rows, columns=COLUMNS):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"name": "jsonl", "path": str(path), "cache": str(tmp_path / "cache")}
    return sources.build({"name": "templates", "source": source, "columns": columns})

  return build


def test_columns_are_rendered_beside_the_rows_own(build):
  source = build([{"en": "one", "de": "eins"}, {"en": "two", "de": "zwei", "prompt": "old"}])
  assert len(source) == 2
  assert source[0] == {
    "en": "one",
    "de": "eins",
    "prompt": "<translate> one {as is}\n",
    "completion": "  eins",
  }
  assert source[1]["prompt"] == "<translate> two {as is}\n"
  assert source.origin(1) == 1
  other = build(
    [{"en": "one", "de": "eins"}, {"en": "two", "de": "zwei", "prompt": "old"}], {"text": "{en}"}
  )
  assert other.fingerprint != source.fingerprint


def test_a_missing_or_empty_column_is_named(build):
  source = build([{"en": "one", "dee": "eins"}, {"en": None, "de": "eins"}])
  with pytest.raises(
    BadRow, match=r"'completion' needs 'de'; .*\['dee', 'en'\]; did you mean 'dee'"
  ):
    source[0]
  with pytest.raises(BadRow, match="'prompt' needs 'en'"):
    source[1]


@pytest.mark.parametrize(
  "template,message",
  [
    ("{en", "expected '}'"),
    ("{en.real}", "{en.real} is not the name of a column"),
    ("{}", "{} is not the name of a column"),
    ("no column", "name no column"),
  ],
)
def test_templates_that_are_none(build, template, message):
  with pytest.raises(ValueError, match=message):
    build([{"en": "one"}], {"text": template})
