"""Tree of thoughts: steps are proposed, judged and gone on from, or given up.

Yao et al. 2023, arXiv:2305.10601.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from research.core import config
from research.generation import checks
from research.reasoning import judges
from research.reasoning.judges import Candidate, Judge
from research.reasoning.outcome import Outcome, Reader, Sample
from research.reasoning.prompts import Ask
from research.reasoning.search import SEARCHES, Node, Walk
from research.reasoning.session import Request, Session, Written

_STATE = {
  "name": "verdict",
  "question": "These are the first steps of an answer. How likely is it that they lead to the right"
  " answer: sure, likely or impossible?",
  "marks": {"sure": 1.0, "likely": 0.5, "impossible": 0.0},
}


@dataclasses.dataclass(frozen=True)
class TreeOfThoughts:
  """A search among thoughts, each a part of the answer up to a separator.

  A thought is drawn after those before it, as the answer goes on; equal ones of a state are one,
  and an empty one is none. Where the model ends the answer, the state is complete. The chosen
  state, if it is not, is written to its end.

  search: a section of `search.SEARCHES`.
  proposals: thoughts drawn after a state.
  judge: a section of `judges.JUDGES`, which values states; by "likelihood" their last thoughts.
  separator: ends a thought, and stays in it but for spaces at its end, with which the next begins.
  thought_tokens: of a thought at most; one that is cut off there is a thought, too.
  """

  search: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "breadth"})
  proposals: int = 3
  judge: Mapping[str, Any] = dataclasses.field(default_factory=lambda: _STATE)
  separator: str = "\n"
  thought_tokens: int = 64

  def __post_init__(self):
    checks.positive(proposals=self.proposals, thought_tokens=self.thought_tokens)
    if not self.separator:
      raise ValueError("the separator of thoughts is empty; it would end each before its start")
    config.call(SEARCHES, self.search)
    config.call(judges.JUDGES, self.judge)

  @property
  def draws(self) -> int:
    """Completions of one prompt."""
    return self.proposals

  def __call__(self, session: Session, asks: Sequence[Ask], reader: Reader) -> list[Outcome]:
    search = config.call(SEARCHES, self.search)
    judge = judges.build(self.judge)
    trees = [[Node(-1, ask.begin, 0, False, 0.0)] for ask in asks]
    chosen: dict[int, int] = {}
    walks: dict[int, Walk] = {i: search.walk(tree) for i, tree in enumerate(trees)}
    sent: dict[int, Any] = dict.fromkeys(walks)
    step = 0
    while walks:
      wanted: dict[int, list[int]] = {}
      for i in list(walks):
        try:
          wanted[i] = walks[i].send(sent[i])
        except StopIteration as stop:
          chosen[i] = stop.value
          del walks[i]
      if wanted:
        sent = self._grow(session, judge, asks, trees, wanted, search.width, step)
      step += 1
    return self._outcomes(session, asks, reader, trees, chosen)

  def _grow(
    self,
    session: Session,
    judge: Judge,
    asks: Sequence[Ask],
    trees: Sequence[list[Node]],
    wanted: Mapping[int, Sequence[int]],
    width: int,
    step: int,
  ) -> dict[int, list[list[int]]]:
    """Adds the children of the wanted nodes -> by problem, for each of these their numbers."""
    pairs = [(i, at) for i, nodes in wanted.items() for at in nodes]
    requests = [
      Request(i, asks[i], state(trees[i], at), i * width + place)
      for i, nodes in wanted.items()
      for place, at in enumerate(nodes)
    ]
    rows = session.write(
      requests,
      samples=self.proposals,
      stage=f"thought/{step}",
      stop=self.separator,
      max_new_tokens=self.thought_tokens,
    )
    children = [self._thoughts(row) for row in rows]
    candidates = [
      Candidate(i, asks[i], state(trees[i], at) + thought.text, thought.log_probs)
      for (i, at), thoughts in zip(pairs, children, strict=True)
      for thought in thoughts
    ]
    values = iter(judge(session, candidates))
    grown: dict[int, list[list[int]]] = {i: [] for i in wanted}
    for (i, at), thoughts in zip(pairs, children, strict=True):
      first = len(trees[i])
      for thought in thoughts:
        depth = trees[i][at].depth + 1
        trees[i].append(
          Node(at, thought.text, depth, thought.ended, next(values), thought.log_probs)
        )
      grown[i].append(list(range(first, len(trees[i]))))
    return grown

  def _thoughts(self, row: Sequence[Written]) -> list[Written]:
    """Those of a node that differ and say something, each with what stays of its separator."""
    found: dict[tuple[str, bool], Written] = {}
    for each in row:
      if each.text.strip() or each.ended:
        text = each.text + each.stop
        found.setdefault((text, each.ended), dataclasses.replace(each, text=text))
    return list(found.values())

  def _outcomes(
    self,
    session: Session,
    asks: Sequence[Ask],
    reader: Reader,
    trees: Sequence[Sequence[Node]],
    chosen: Mapping[int, int],
  ) -> list[Outcome]:
    """The chosen states, written to their ends."""
    open_ = [i for i in range(len(asks)) if not trees[i][chosen[i]].complete]
    requests = [Request(i, asks[i], state(trees[i], chosen[i])) for i in open_]
    ended = dict(zip(open_, session.ends(requests, reader, stage="end"), strict=True))
    outcomes = []
    for i, nodes in enumerate(trees):
      path = _path(nodes, chosen[i])
      log_probs = tuple(value for at in path for value in nodes[at].log_probs)
      text, finished = state(nodes, chosen[i]), True
      if i in ended:
        (end,) = ended[i]
        text, log_probs, finished = end.text, log_probs + end.log_probs, end.finished
      answer = Sample(text, reader.read(text), len(log_probs), log_probs, finished)
      trace = {"nodes": [_told(node) for node in nodes], "chosen": chosen[i]}
      outcomes.append(Outcome(answer, session.costs[i], [answer], trace=trace))
    return outcomes


def state(nodes: Sequence[Node], at: int) -> str:
  """The text from the root to the node `at`."""
  return "".join(nodes[i].text for i in _path(nodes, at))


def _path(nodes: Sequence[Node], at: int) -> list[int]:
  path = []
  while at >= 0:
    path.append(at)
    at = nodes[at].parent
  return path[::-1]


def _told(node: Node) -> dict[str, Any]:
  told = dataclasses.asdict(node)
  del told["log_probs"]
  return told
