"""A command's help is its docstring, and its flags are written out."""

import pytest

from research.core import command


def test_help_is_the_docstring_around_the_arguments():
  parser = command.parser("some.where", "Does it.\n\n  an example,\n  as it is\n")
  parser.add_argument("--number", help="of things")
  told = parser.format_help()
  places = [told.index(part) for part in ("python -m some.where", "Does it.", "of things")]
  assert places == sorted(places)
  assert told.endswith("\n  an example,\n  as it is\n")


def test_flags_are_not_abbreviated(capsys):
  parser = command.parser("some.where", None)
  parser.add_argument("--number")
  assert parser.parse_args(["--number=1"]).number == "1"
  with pytest.raises(SystemExit):
    parser.parse_args(["--num=1"])
  assert "unrecognized arguments: --num=1" in capsys.readouterr().err


class _Worse(ValueError):
  pass


@pytest.mark.parametrize(
  ("error", "codes", "expected"),
  [
    (ValueError, command.CANNOT_BE, 2),
    (FileNotFoundError, command.CANNOT_BE, 2),
    (RuntimeError, command.CANNOT_BE, 2),
    (_Worse, {_Worse: 3, ValueError: 1}, 3),  # the first that fits
    (ConnectionError, {OSError: 1}, 1),
  ],
)
def test_an_error_is_a_line_and_a_code(capsys, error, codes, expected):
  def work():
    raise error("it is wrong; so it would be right")

  assert command.run(work, codes) == expected
  assert capsys.readouterr().err == "error: it is wrong; so it would be right\n"
  with pytest.raises(error):
    command.run(work, codes, traceback=True)


def test_other_errors_are_raised_and_codes_returned():
  assert command.run(lambda: 7) == 7

  def work():
    raise OSError("no space")  # a FileNotFoundError is one, and not the other way round

  with pytest.raises(OSError, match="no space"):
    command.run(work)
