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
