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
  "words": ({"tokens": ["a", "b"], "labels": [0, 1]}, ["a b"]),
  "none": ({"text": None, "tokens": [1], "messages": ["a", {"role": "user"}]}, []),
  "beside": (
    {
      "answer": "c",
      "messages": [
        {"role": "assistant", "content": "a", "tool_calls": [{"arguments": "{}"}]},
        {"role": "tool", "content": ["b", {"type": "text", "text": "d"}, {"type": "image"}]},
      ],
    },
    ["a", "b", "d"],
  ),
}


@pytest.mark.parametrize("kind", ROWS)
def test_texts_are_found_and_changed(kind):
  row, expected = ROWS[kind]
  assert texts.of(row) == expected
  assert texts.joined(row) == "\n\n".join(expected)
  assert texts.changed(row, lambda text: text) == row
  every = list(texts.strings(row))
  changed = texts.changed(row, lambda text: f"<{text}>")
  assert list(texts.strings(changed)) == [f"<{text}>" for text in every]
  assert texts.changed(changed, lambda text: text[1:-1]) == row
  assert texts.of(row) == expected and list(texts.strings(row)) == every  # as it was


def test_strings_are_those_of_all_columns_however_deep():
  row = {"id": 3, "a": "x", "b": {"c": ["y", None, {"d": "z"}], "e": 1.5}, "f": [("w",)]}
  assert [*texts.strings(row)] == ["x", "y", "z", "w"]
  expected = {"id": 3, "a": "X", "b": {"c": ["Y", None, {"d": "Z"}], "e": 1.5}, "f": [["W"]]}
  assert texts.changed(row, str.upper) == expected


def test_numbers():
  assert number_of({"a": 3}, "a") == 3.0
  for value in (None, True, "3", float("nan")):
    with pytest.raises(BadRow, match="without a number: column 'a' holds"):
      number_of({"a": value}, "a")
  with pytest.raises(BadRow, match="did you mean 'score'"):
    number_of({"score": 1}, "scores")
