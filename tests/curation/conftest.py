"""Rows in memory, and what a step does with them."""

import numpy as np
import pytest

from research.curation.step import Ledger, Rows
from research.data.examples import Report


class Memory:
  """A source of given rows; people know row `i` as `i + 100`."""

  name = "memory"

  def __init__(self, rows):
    self.report = Report()
    self.fingerprint = repr(rows)
    self._rows = rows

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, index):
    row = self._rows[index]
    if isinstance(row, Exception):
      raise row
    return row

  def origin(self, index):
    return index + 100


@pytest.fixture
def memory():
  return Memory


@pytest.fixture
def judged(tmp_path):
  """`(step, texts or rows) -> Ledger`."""

  def judge(step, rows):
    rows = [{"text": row} if isinstance(row, str) else row for row in rows]
    ledger = Ledger(Rows(Memory(rows), np.arange(len(rows))), tmp_path)
    step.judge(ledger.rows, ledger)
    return ledger

  return judge


@pytest.fixture
def dropped(judged):
  """`(step, texts or rows) -> positions` of those that go."""

  def positions(step, rows):
    return np.flatnonzero(judged(step, rows).dropped).tolist()

  return positions
