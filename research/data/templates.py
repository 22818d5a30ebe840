"""Rows rendered through a task's templates: the columns a format wants, from those there are."""

from __future__ import annotations

import string
from collections.abc import Mapping

from research.core import tree
from research.data.examples import BadRow
from research.data.source import Row, Source


class Templates:
  """A source whose rows have columns made of a source's, beside its own.

  A task's token is part of its templates, as text: `"<translate> {english}"`.

  Args:
    source: the rows.
    columns: column -> Python format string over the row's columns, such as
      `{"prompt": "translate: {english}", "completion": " {german}"}`.

  Raises:
    ValueError: a template is none, or they name no column at all.
  """

  def __init__(self, source: Source, columns: Mapping[str, str]):
    self._source, self._columns = source, dict(columns)
    self._needed = {name: _fields(name, template) for name, template in self._columns.items()}
    if not any(self._needed.values()):
      raise ValueError(f"the templates {self._columns} name no column; write one as {{column}}")
    self.name = source.name
    self.fingerprint = f"{source.fingerprint}|{sorted(self._columns.items())}"
    self.report = source.report

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Row:
    row = self._source[index]
    for name, fields in self._needed.items():
      for field in fields:
        if row.get(field) is None:
          raise BadRow(
            "without its columns",
            f"the template of {name!r} needs {field!r}; the row has {sorted(row)}"
            f"{tree.nearest(field, row)}",
          )
    made = {name: template.format_map(row) for name, template in self._columns.items()}
    return {**row, **made}

  def origin(self, index: int) -> int:
    return self._source.origin(index)


def _fields(name: str, template: str) -> list[str]:
  """The columns that a template names, each once.

  Raises:
    ValueError: its braces do not pair, or a field is more than a column's name.
  """
  try:
    found = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
  except ValueError as error:
    raise ValueError(f"template of {name!r}, {template!r}: {error}") from error
  for field in found:
    if not field.isidentifier():
      raise ValueError(
        f"template of {name!r}, {template!r}: {{{field}}} is not the name of a column"
      )
  return list(dict.fromkeys(found))
