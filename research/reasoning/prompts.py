"""How a problem is put to a model: as it is, or so that it writes a chain of thought."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.core import tree
from research.data import chat, prompts, sources


@dataclasses.dataclass(frozen=True)
class Ask:
  """A problem as a model reads it.

  problem: its own prompt, a text to go on with or messages that end with a user's.
  prompt: what is read in its place, of the same kind.
  begin: what the answer begins with; the model goes on from there.
  """

  problem: Any
  prompt: Any
  begin: str = ""

  def ids(self, tokenizer: Any, written: str | None = None) -> list[int]:
    """Token ids, of which the next is the model's.

    Args:
      written: what there is of the answer, by default `begin`.

    Raises:
      ValueError: messages, and the tokenizer has no chat template, or one that refuses them.
    """
    written = self.begin if written is None else written
    if isinstance(self.prompt, str):
      return chat.encode_text(tokenizer, self.prompt + written)
    ids = chat.encode_prompt(tokenizer, self.prompt)
    return ids + tokenizer.encode(written, add_special=False) if written else ids

  def then(self, answer: str, question: str) -> Ask:
    """The conversation after `answer`, gone on with by `question`."""
    return Ask(self.problem, prompts.then(self.prompt, answer, question))


@dataclasses.dataclass(frozen=True)
class Plain:
  """Problems as they are."""

  def __call__(self, problems: Sequence[Any]) -> list[Ask]:
    return [Ask(problem, problem) for problem in problems]


@dataclasses.dataclass(frozen=True)
class ChainOfThought:
  """Problems whose answers begin with how they are found.

  By an instruction (Kojima et al. 2022, arXiv:2205.11916, of which this is the first of two
  prompts), by exemplars that are worked out (Wei et al. 2022, arXiv:2201.11903), or by both.

  instruction: behind the user's last message, or ahead of a text; exemplars have it, too.
  begin: what the answer begins with.
  shots: the config of a source (`research.data.sources`) of exemplars, each a row of `question`,
    `reasoning` and `answer`. All of them are shown, in their order, ahead of each problem.
  shown: what an exemplar answers.

  Raises:
    ValueError: none of the three would change a problem.
  """

  instruction: str = "Think step by step, and end with the answer."
  begin: str = ""
  shots: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  shown: str = "{reasoning} The answer is {answer}."

  def __post_init__(self):
    if not (self.instruction or self.begin or self.shots):
      raise ValueError("chain_of_thought takes an instruction, a begin or shots")

  def __call__(self, problems: Sequence[Any]) -> list[Ask]:
    """Raises:
    ValueError: an exemplar lacks a column.
    """
    shots = self._shots()
    return [Ask(problem, self._prompt(problem, shots), self.begin) for problem in problems]

  def _shots(self) -> list[tuple[str, str]]:
    """Questions, and how they are answered."""
    if not self.shots:
      return []
    source = sources.build(self.shots)
    found = []
    for index in range(len(source)):
      row = source[index]
      for column in ("question", "reasoning", "answer"):
        if row.get(column) is None:
          where = f"{source.name}: row {source.origin(index)}"
          raise ValueError(f"{where}, an exemplar, has no {column!r}{tree.nearest(column, row)}")
      try:
        told = self.shown.format_map(row)
      except (KeyError, IndexError) as error:
        raise ValueError(f"shown {self.shown!r} asks for {error}, which no row has") from error
      found.append((str(row["question"]), told))
    return found

  def _prompt(self, problem: Any, shots: Sequence[tuple[str, str]]) -> Any:
    if isinstance(problem, str):
      asked = "".join(f"{question}\n{answer}\n\n" for question, answer in shots)
      return (f"{self.instruction}\n\n" if self.instruction else "") + asked + problem
    behind = f"\n\n{self.instruction}" if self.instruction else ""
    first = 1 if problem[0].get("role") == "system" else 0
    turns = [
      message
      for question, answer in shots
      for message in (_message("user", question + behind), _message("assistant", answer))
    ]
    last = {**problem[-1], "content": problem[-1]["content"] + behind}
    return [*problem[:first], *turns, *problem[first:-1], last]


def _message(role: str, content: str) -> dict[str, str]:
  return {"role": role, "content": content}


PROMPTS: dict[str, Callable[..., Any]] = {"plain": Plain, "chain_of_thought": ChainOfThought}
