"""JSON lines as commands write them."""

import json

from research.io import lines


def test_only_a_line_feed_ends_a_line(tmp_path):
  """Not what JSON leaves in strings as it is, and Unicode calls the end of a line."""
  rows = [{"text": f"a{mark}b"} for mark in "\u2028\u2029\u0085\x0b\x0c\x1c\r\n"]
  written = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
  file = tmp_path / "rows.jsonl"
  file.write_text("\n".join(written), encoding="utf-8")
  assert lines.read(file) == rows
