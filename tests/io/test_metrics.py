"""metrics.jsonl through crashes, TensorBoard's files, the terminal's lines."""

import io
import math
import struct

import pytest
from tensorboardX.proto import event_pb2

from research.io import metrics


def _write(file, resume_step, steps):
  lines = metrics.JsonLines(file, resume_step)
  for step in steps:
    lines.write(step, {"loss": step / 2})
  lines.close()


def test_lines_come_back(tmp_path):
  file = tmp_path / "metrics.jsonl"
  lines = metrics.JsonLines(file, None)
  lines.write(1, {"loss": 0.1, "rate": math.inf, "nothing": math.nan})
  # There before the file is closed: a killed process closes nothing.
  read = metrics.read_json_lines(file)
  assert read == [{"step": 1, "loss": 0.1, "rate": None, "nothing": None}]
  lines.close()


@pytest.mark.parametrize("torn", ["", '{"step": 7, "lo'])
def test_going_on_cuts_what_will_be_written_again(tmp_path, torn):
  file = tmp_path / "metrics.jsonl"
  _write(file, None, range(1, 7))
  with file.open("a") as out:
    out.write(torn)
  _write(file, 4, range(5, 9))
  assert metrics.read_json_lines(file) == [{"step": s, "loss": s / 2} for s in range(1, 9)]


def test_a_run_without_checkpoint_starts_its_file_anew(tmp_path):
  file = tmp_path / "metrics.jsonl"
  _write(file, None, [1, 2])
  _write(file, None, [1])
  assert [line["step"] for line in metrics.read_json_lines(file)] == [1]


def _events(directory):
  """The events of all files: records of a length, its checksum, the bytes, their checksum."""
  for file in sorted(directory.iterdir()):
    content = file.read_bytes()
    while content:
      (size,) = struct.unpack("<Q", content[:8])
      yield event_pb2.Event.FromString(content[12 : 12 + size])
      content = content[16 + size :]


def test_tensorboard_shows_the_curve_of_a_resumed_run_once(tmp_path):
  for resume, steps in ((None, range(1, 7)), (4, range(5, 9))):
    board = metrics.TensorBoard(tmp_path / "b", resume)
    for step in steps:
      board.write(step, {"loss": step / 2})
    board.close()
  points = []
  for event in _events(tmp_path / "b"):
    if event.session_log.status == event_pb2.SessionLog.START:
      # What TensorBoard does with it: the steps from there on are disowned.
      points = [point for point in points if point[0] < event.step]
    points += [(event.step, value.simple_value) for value in event.summary.value]
  assert points == [(s, s / 2) for s in range(1, 9)]


def test_without_a_terminal_there_is_a_line_now_and_then():
  out = io.StringIO()
  terminal = metrics.Terminal(25, 0, 10, out)
  for step in range(1, 26):
    terminal.update(step, 1 / step, 1234.5, 0.034, 90 if step > 1 else 0)
  terminal.close()
  assert out.getvalue().splitlines() == [
    "step 10/25  loss 0.1000  1,234 tokens/s, 3% waiting for data, 01:30 left",
    "step 20/25  loss 0.0500  1,234 tokens/s, 3% waiting for data, 01:30 left",
    "step 25/25  loss 0.0400  1,234 tokens/s, 3% waiting for data, 01:30 left",
  ]


class _Tty(io.StringIO):
  def isatty(self):
    return True


def test_on_a_terminal_there_is_a_bar_with_lines_above():
  out = _Tty()
  terminal = metrics.Terminal(25, 20, 10, out)
  terminal.update(21, 0.5, 0.0, 0.0, 0.0)
  terminal.say("a word")
  terminal.update(25, 0.25, 2000, 0.5, 0.0)
  terminal.close()
  text = out.getvalue()
  assert "20/25" in text and "a word\n" in text
  assert "25/25" in text and "loss 0.2500, 2,000 tokens/s, 50% waiting for data" in text
