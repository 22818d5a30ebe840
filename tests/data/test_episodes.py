"""Episodes against the rows that they show and ask."""

import json

import pytest

from research.data import sources
from research.data.examples import BadRow


@pytest.fixture
def write(tmp_path):
  def write(name, rows):
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "jsonl", "path": str(path), "cache": str(tmp_path / "cache")}

  return write


def numbers(count, first=0):
  return [
    {"prompt": f"{i}?", "completion": f" {i}!", "answer": i} for i in range(first, first + count)
  ]


def test_a_row_is_asked_after_others_that_are_solved(write):
  config = {"name": "episodes", "source": write("a", numbers(6)), "shots": 3}
  episodes = sources.build(config)
  assert len(episodes) == 6
  seen = set()
  for i in range(6):
    row = episodes[i]
    *solved, asked = row["prompt"].split("\n\n")
    assert (asked, row["completion"], row["answer"]) == (f"{i}?", f" {i}!", i)
    shown = [int(part.split("?")[0]) for part in solved]
    assert solved == [f"{n}? {n}!" for n in shown]
    assert len({*shown}) == 3 and i not in shown
    seen.add(tuple(shown))
    assert episodes.origin(i) == i
  assert len(seen) > 1
  again, other = sources.build(config), sources.build({**config, "seed": 1})
  assert [again[i] for i in range(6)] == [episodes[i] for i in range(6)]
  assert [other[i] for i in range(6)] != [episodes[i] for i in range(6)]
  assert again.fingerprint == episodes.fingerprint != other.fingerprint


def test_every_choice_is_as_likely(write):
  config = {"name": "episodes", "source": write("a", numbers(4)), "shots": 1, "size": 4000}
  episodes = sources.build(config)
  counts = {}
  for i in range(4000):
    pair = episodes[i]["prompt"].split("?")[0], i % 4
    counts[pair] = counts.get(pair, 0) + 1
  assert len(counts) == 12  # every row before every other, anew in each pass
  for count in counts.values():
    assert abs(count - 4000 / 12) < 4.5 * (4000 / 12) ** 0.5


def test_exemplars_of_another_source_and_none_at_all(write):
  asked, shown = write("a", numbers(3)), write("b", numbers(2, first=10))
  config = {"name": "episodes", "source": asked, "exemplars": shown, "shots": 2}
  row = sources.build({**config, "separator": "|"})[1]
  assert row["prompt"] in ("10? 10!|11? 11!|1?", "11? 11!|10? 10!|1?")
  assert sources.build({**config, "shots": 0})[1]["prompt"] == "1?"


def test_messages(write):
  def said(role, content):
    return [{"role": role, "content": content}]

  rows = [
    {"prompt": said("user", f"{i}?"), "completion": said("assistant", f"{i}!")} for i in range(2)
  ]
  row = sources.build({"name": "episodes", "source": write("a", rows), "shots": 1})[0]
  assert row["prompt"] == said("user", "1?") + said("assistant", "1!") + said("user", "0?")
  assert row["completion"] == said("assistant", "0!")


def test_refuses(write):
  asked = write("a", numbers(3))
  with pytest.raises(ValueError, match="of 3 shots show as many other rows, and there are 2"):
    sources.build({"name": "episodes", "source": asked, "shots": 3})
  texts = {"name": "episodes", "source": write("b", [{"text": "x"}] * 2), "shots": 1}
  with pytest.raises(BadRow, match="an episode needs 'prompt'"):
    sources.build(texts)[0]
  mixed = write("c", [{"prompt": [{"role": "user", "content": "x"}], "completion": "y"}])
  with pytest.raises(BadRow, match="an episode mixes strings and messages"):
    sources.build({"name": "episodes", "source": asked, "exemplars": mixed, "shots": 1})[0]
