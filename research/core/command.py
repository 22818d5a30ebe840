"""The parser of a command whose help is the docstring of its module."""

from __future__ import annotations

import argparse


def parser(module: str, docstring: str | None) -> argparse.ArgumentParser:
  """A parser without arguments yet, which takes no abbreviations of them.

  Args:
    module: what `python -m` runs.
    docstring: its first line is told ahead of the arguments, and the others, as they are, behind.
  """
  summary, _, more = (docstring or "").partition("\n")
  return argparse.ArgumentParser(
    prog=f"python -m {module}",
    description=summary,
    epilog=more,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
