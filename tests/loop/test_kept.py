"""What a teacher said, where one process of several asks it."""

import threading

import jax
import pytest

from research.core import distributed
from research.loop import kept as asking


@pytest.fixture
def second(monkeypatch):
  """This process is the second of two, of which the first says what this one does."""
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(distributed, "everywhere", lambda told: told)
  monkeypatch.setattr(asking, "_LOOK_SECONDS", 0.01)


def never():
  raise AssertionError("the second process asked")


def test_others_wait_for_the_first(tmp_path, second):
  finished = []

  def finish():
    finished.append(True)
    (tmp_path / "kept.json").write_text("{}")

  threading.Timer(0.1, finish).start()
  asking._require_whole(tmp_path, never)
  assert finished


def test_a_cache_that_others_do_not_see(tmp_path, second):
  with pytest.raises(ValueError, match="others do not see; RESEARCH_CACHE has to name"):
    asking._require_whole(tmp_path / "teacher-1", never)


def test_others_end_where_the_first_fails(tmp_path, second):
  with pytest.MonkeyPatch.context() as first:
    first.setattr(jax, "process_index", lambda: 0)
    with pytest.raises(AssertionError, match="asked"):
      asking._require_whole(tmp_path, never)
  with pytest.raises(ValueError, match="the first process could not ask the teacher"):
    asking._require_whole(tmp_path, never)


def test_the_first_asks_for_what_is_not_there(tmp_path):
  asked = []

  def write():
    asked.append(True)
    (tmp_path / "teacher-1/kept.json").write_text("{}")

  for _ in range(2):
    asking._require_whole(tmp_path / "teacher-1", write)
  assert len(asked) == 1
