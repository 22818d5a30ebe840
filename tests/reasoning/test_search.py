"""Both searches on a tree that is known beforehand."""

import pytest

from research.reasoning.search import Breadth, Depth, Node

# State -> its children's last letters with values; a full stop ends an answer.
TREE = {
  "": {"a": 0.6, "b": 0.9, "c": 0.2},
  "a": {"d": 0.8, "e": 0.7},
  "b": {"f": 0.3, "g": 0.1},
  "c": {"z": 1.0},
  "ad": {".": 0.95},
  "ae": {"h": 0.5},
  "bf": {"i": 0.4},
  "cz": {".": 1.0},
}


def walk(search, tree=TREE):
  """The state that is chosen, and those that were expanded, turn by turn."""
  nodes, states, turns = [Node(-1, "", 0, False, 0.0)], [""], []
  walking = search.walk(nodes)
  sent = None
  while True:
    try:
      wanted = walking.send(sent)
    except StopIteration as stop:
      return states[stop.value], turns
    turns.append([states[i] for i in wanted])
    assert len(wanted) <= search.width
    sent = []
    for at in wanted:
      first = len(nodes)
      for text, value in tree.get(states[at], {}).items():
        nodes.append(Node(at, text, nodes[at].depth + 1, text == ".", value))
        states.append(states[at] + text)
      sent.append(list(range(first, len(nodes))))


@pytest.mark.parametrize(
  ("search", "chosen", "turns"),
  [
    (Breadth(beam=1, depth=3), "bfi", [[""], ["b"], ["bf"]]),  # greedy, and misled
    (Breadth(beam=2, depth=3), "ad.", [[""], ["b", "a"], ["ad", "ae"]]),
    (Breadth(beam=2, depth=1), "b", [[""]]),
    # What is complete waits while others are expanded; where all are, there is no further turn.
    (Breadth(beam=3, depth=9), "cz.", [[""], ["b", "a", "c"], ["cz", "ad", "ae"], ["aeh"]]),
    (Depth(threshold=0.0, depth=3), "bfi", [[""], ["b"], ["bf"]]),
    # b's children are pruned, and it comes back to a.
    (Depth(threshold=0.5, depth=3), "ad.", [[""], ["b"], ["a"], ["ad"]]),
    (Depth(threshold=0.5, depth=3, expansions=2), "b", [[""], ["b"]]),
    (Depth(threshold=0.99, depth=3), "", [[""]]),
  ],
)
def test_order(search, chosen, turns):
  assert walk(search) == (chosen, turns)


def test_of_equals_the_first_goes_on():
  tree = {"": {"a": 0.5, "b": 0.5}, "a": {".": 0.5}, "b": {".": 0.5}}
  assert walk(Breadth(beam=1, depth=2), tree) == ("a.", [[""], ["a"]])
  assert walk(Depth(depth=2), tree) == ("a.", [[""], ["a"]])


def test_without_any_thought():
  assert walk(Breadth(), {}) == ("", [[""]])
  assert walk(Depth(), {}) == ("", [[""]])


@pytest.mark.parametrize("wrong", [lambda: Breadth(beam=0), lambda: Depth(expansions=0)])
def test_mistakes(wrong):
  with pytest.raises(ValueError, match="must be at least 1"):
    wrong()
