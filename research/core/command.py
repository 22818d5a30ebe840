"""What commands share: a parser whose help is the module's docstring, and errors in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping

# What is asked for cannot be; RuntimeError: a model that cannot be fetched.
CANNOT_BE: Mapping[type[Exception], int] = {ValueError: 2, FileNotFoundError: 2, RuntimeError: 2}


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


def run(
  work: Callable[[], int],
  codes: Mapping[type[Exception], int] = CANNOT_BE,
  *,
  traceback: bool = False,
) -> int:
  """The exit code of a command that does `work`: what that returns, or that of its error.

  Args:
    codes: by the type of an error, of which one line is told; the first that fits counts. Others
      are raised.
    traceback: these are raised, too.
  """
  try:
    return work()
  except tuple(codes) as error:
    if traceback:
      raise
    print(f"error: {error}", file=sys.stderr)
    return next(code for kind, code in codes.items() if isinstance(error, kind))
