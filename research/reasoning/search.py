"""The order in which a tree of thoughts grows, apart from who thinks.

A search's `walk(nodes)` is a generator: it yields the numbers of nodes whose children it wants to
know, is sent for each of these the numbers of its children, which are behind the others in `nodes`
by then, and returns the number of the node that it chose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any

from research.generation import checks


@dataclasses.dataclass(frozen=True)
class Node:
  """A state: the thoughts from the root, number 0, to this one.

  parent: its number, -1 of the root. text: the last thought. depth: how many there are.
  complete: the answer ends here. value: what the state is worth, the larger the better.
  log_probs: of the thought's tokens.
  """

  parent: int
  text: str
  depth: int
  complete: bool
  value: float
  log_probs: tuple[float, ...] = ()


Walk = Generator[list[int], list[list[int]], int]


@dataclasses.dataclass(frozen=True)
class Breadth:
  """Breadth first: of all children of the last step's states the best go on (Yao et al., alg. 1).

  A complete state has no children, and competes as it is. Of states that are worth the same the one
  that was found first goes on.

  beam: states that go on. depth: thoughts of a state at most.
  """

  beam: int = 2
  depth: int = 3

  def __post_init__(self):
    checks.positive(beam=self.beam, depth=self.depth)

  @property
  def width(self) -> int:
    """Nodes that are wanted at once at most."""
    return self.beam

  def walk(self, nodes: Sequence[Node]) -> Walk:
    beam = [0]
    for _ in range(self.depth):
      going = [i for i in beam if not nodes[i].complete]
      if not going:
        break
      grown = yield going
      pool = [i for i in beam if nodes[i].complete]
      pool += [child for children in grown for child in children]
      if not pool:  # nobody had a thought
        break
      beam = sorted(pool, key=lambda i: -nodes[i].value)[: self.beam]
    return beam[0]


@dataclasses.dataclass(frozen=True)
class Depth:
  """Depth first: the best child before its siblings, to which it comes back (Yao et al., alg. 2).

  It ends at the first state that is complete or has `depth` thoughts. Where all were pruned, or so
  many were expanded, that is the deepest that it came to, and of these the best.

  threshold: states worth less are pruned. depth: thoughts of a state at most.
  expansions: states that may have children at most.
  """

  threshold: float = 0.5
  depth: int = 3
  expansions: int = 10

  def __post_init__(self):
    checks.positive(depth=self.depth, expansions=self.expansions)

  @property
  def width(self) -> int:
    """Nodes that are wanted at once at most."""
    return 1

  def walk(self, nodes: Sequence[Node]) -> Walk:
    stack, best, expanded = [0], 0, 0
    while stack:
      here = stack.pop()
      best = max(best, here, key=lambda i: (nodes[i].depth, nodes[i].value))
      if nodes[here].complete or nodes[here].depth == self.depth:
        return here
      if expanded == self.expansions:
        break
      (children,) = yield [here]
      expanded += 1
      kept = [child for child in children if nodes[child].value >= self.threshold]
      stack += sorted(kept, key=lambda i: (nodes[i].value, -i))
    return best


SEARCHES: dict[str, Callable[..., Any]] = {"breadth": Breadth, "depth": Depth}
