"""Votes, counted by hand."""

import pytest

from research.evals.scorers import SCORERS
from research.reasoning import Sample
from research.reasoning.votes import agreement, elect


def samples(*texts, cut=()):
  read = SCORERS["last_number"].read
  return [Sample(text, read(text), 1, (0.0,), i not in cut) for i, text in enumerate(texts)]


@pytest.mark.parametrize(
  ("texts", "chosen", "share"),
  [
    (("8", "7", "it is 7.0", "9"), 1, 0.5),  # equal numbers are one value
    (("none", "dunno", "nothing", "4"), 3, 0.25),  # what is not read does not vote
    (("3", "5", "5", "3"), 0, 0.5),  # of equals the one that came first
    (("none", "dunno"), 0, 0.0),
    (("6",), 0, 1.0),
  ],
)
def test_majority(texts, chosen, share):
  given = samples(*texts)
  assert elect(given) == chosen
  assert agreement(given, chosen) == share


def test_what_was_cut_off_votes_only_among_its_like():
  assert elect(samples("1", "1", "2", cut=(0, 1))) == 2
  assert elect(samples("1", "2", "2", cut=(0, 1, 2))) == 1
  assert elect(samples("2 and", "2 and", "none", cut=(0, 1))) == 0


def test_weights():
  given = samples("1", "2", "2", "none")
  assert elect(given, [0.9, 0.3, 0.3, 1.0]) == 0
  assert elect(given, [0.5, 0.3, 0.3, 1.0]) == 1
  assert elect(given, [0.0, 0.0, 0.0, 1.0]) == 0
