"""The texts of rows of every kind, and rows with other texts."""

import pytest

from research.data import texts
from research.data.examples import BadRow, number_of

ROWS = {
  "text": ({"text": "a", "id": "b"}, ["a"]),
  "problem": ({"completion": "b", "prompt": "a"}, ["a", "b"]),
  "messages": (
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ["a", "b"],
  ),
  "parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, ["a"]),
  "fields": ({"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}}, ["a", "b"]),
  "preferences": (
    {"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c", "margin": 1.0},
    ["a", "b", "c"],
  ),
  "none": ({"text": None, "tokens": ["a"], "messages": ["a", {"role": "user"}]}, []),
}


@pytest.mark.parametrize("kind", ROWS)
def test_texts_are_found_and_changed(kind):
  row, expected = ROWS[kind]
  assert texts.of(row) == expected
  assert texts.joined(row) == "\n\n".join(expected)
  assert texts.changed(row, lambda text: text) == row
  upper = texts.changed(row, str.upper)
  assert texts.of(upper) == [text.upper() for text in expected]
  assert texts.of(row) == expected and upper.keys() == row.keys()


def test_numbers():
  assert number_of({"a": 3}, "a") == 3.0
  for value in (None, True, "3", float("nan")):
    with pytest.raises(BadRow, match="without a number: column 'a' holds"):
      number_of({"a": value}, "a")
  with pytest.raises(BadRow, match="did you mean 'score'"):
    number_of({"score": 1}, "scores")
