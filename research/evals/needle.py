"""Whether a model finds a fact that is hidden in a long text."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from research import generation
from research.core import distributed
from research.data import prompts
from research.evals import bootstrap, progress, rolling
from research.evals.result import Result, item_id

_NAMES = """
  Amsterdam Athens Auckland Bangkok Berlin Bogota Boston Brussels Cairo Chicago Copenhagen Dakar
  Dublin Geneva Hanoi Helsinki Istanbul Jakarta Kyoto Lagos Lima Lisbon London Madrid Manila
  Melbourne Miami Montreal Mumbai Nairobi Oslo Paris Prague Quito Rome Seoul Stockholm Tokyo
  Toronto Vienna Warsaw Zurich
"""
_CITIES = tuple(_NAMES.split())
_WORDS = 20  # of a piece of the text; what has no end after so many is cut
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_GROUPED = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")


@dataclasses.dataclass(frozen=True)
class _Problem:
  """A prompt of a cell; `answers` are the numbers asked for, in order."""

  length: int
  depth: float
  prompt: list[int]
  answers: list[str]


@dataclasses.dataclass(frozen=True)
class Needle:
  """Facts hidden in a text of a length, at a depth, and asked for behind it (Kamradt 2023).

  A fact is "The special number of CITY is NUMBER.", five digits, between two sentences of the text,
  or within one of more than 20 words.
  Of several, the first is at the depth and the others evenly over what follows; they are asked for
  in the order in which they stand. Facts beyond those asked for are distractors (Hsieh et al. 2024,
  arXiv:2404.06654, section 3.1), anywhere in the text. An answer is right if the first numbers in
  it are those, all of them and in that order. Each prompt has facts of its own, and a part of the
  text that begins at a sentence of its own; they follow from the seed, the cell and the prompt's
  number in it.

  Metrics: `accuracy`, `accuracy/LENGTH/DEPTH` of each cell, with Wilson's intervals, `found`, the
  share of all facts asked for that stand anywhere in the answers, and `problems`. A record is a
  prompt. The table `cells` has a row a cell.

  data: the config of a source whose rows have `text` (`research.data.sources`), the haystack; a
    text that is too short goes round.
  lengths: tokens that prompts have at most, the facts and the question included; about a sentence
    is missing.
  depths: where the first fact is, from 0, the beginning, to 1, the end.
  needles: facts in a prompt. asked: how many of them are asked for, by default all.
  size: prompts of a cell.
  chat: a prompt is a user's message, by the tokenizer's template; otherwise a text to go on with.
  max_new_tokens, batch_size: of answers.
  seed: see above.
  shown: how many answers the result's `samples` spell out.
  label: the result's name.
  """

  data: Mapping[str, Any]
  lengths: Sequence[int] = (256, 512, 1024)
  depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
  needles: int = 1
  asked: int | None = None
  size: int = 5
  chat: bool = False
  max_new_tokens: int = 32
  batch_size: int = 8
  seed: int = 0
  shown: int = 2
  label: str = "needle"

  def __post_init__(self):
    for cells in (self.lengths, self.depths):
      if not cells or len({*cells}) < len(cells):
        raise ValueError(f"{self.label}: lengths and depths are one or more, each once")
    if not all(0 <= depth <= 1 for depth in self.depths):
      raise ValueError(f"{self.label}: depths are from 0 to 1, not {list(self.depths)}")
    if self.size < 1 or not 1 <= self.needles <= len(_CITIES):
      raise ValueError(
        f"{self.label}: a cell has 1 prompt or more, and a prompt 1 to {len(_CITIES)} needles"
      )
    if not 1 <= self._count <= self.needles:
      raise ValueError(
        f"{self.label}: asked is from 1 to needles, {self.needles}, not {self.asked}"
      )

  @property
  def _count(self) -> int:
    return self.needles if self.asked is None else self.asked

  def __call__(self, model: Any, variables: Any, tokenizer: Any) -> Result:
    """Asks in every cell.

    Raises:
      ValueError: a row has no `text`, a length is too short for the question, or the model cannot
        take the longest prompt and its answer.
    """
    with distributed.alike(f"what {self.label} reads") as told:
      problems = list(self._problems(tokenizer))
      told["problems"] = [problem.prompt for problem in problems]
    with progress.bar(len(problems), self.label, "prompt") as bar:
      completions = generation.generate(
        model,
        variables,
        [problem.prompt for problem in problems],
        max_new_tokens=self.max_new_tokens,
        eos_ids=tokenizer.eos_ids,
        batch_size=self.batch_size,
        progress=bar.update,
      )
    records = []
    for index, (problem, completion) in enumerate(zip(problems, completions, strict=True)):
      text = tokenizer.decode(completion.tokens)
      written = numbers(text)
      records.append(
        {
          "id": item_id(index, str(problem.prompt)),
          "length": problem.length,
          "depth": problem.depth,
          "tokens": len(problem.prompt),
          "answers": problem.answers,
          "completion": text,
          "correct": int(written[: len(problem.answers)] == problem.answers),
          "found": sum(answer in written for answer in problem.answers),
          "asked": len(problem.answers),
        }
      )
    return self._result(records)

  def _problems(self, tokenizer: Any) -> Iterator[_Problem]:
    """All prompts, cell by cell."""
    sentences = [piece for text in rolling.texts(self.data) for piece in _pieces(text)]
    if not sentences:
      raise ValueError(f"{self.label}: there is no text to hide anything in")
    # By itself a sentence may have a token more or less than within the text.
    counts = [len(tokenizer.encode(" " + s, add_special=False)) for s in sentences]
    cells = itertools.product(enumerate(self.lengths), enumerate(self.depths), range(self.size))
    for (row, length), (column, depth), number in cells:
      rng = np.random.default_rng([self.seed, row, column, number])
      cities = [str(city) for city in rng.choice(_CITIES, self.needles, replace=False)]
      answers = [str(answer) for answer in rng.integers(10_000, 100_000, self.needles)]
      facts = [
        f"The special number of {city} is {answer}."
        for city, answer in zip(cities, answers, strict=True)
      ]
      start = int(rng.integers(len(sentences)))
      elsewhere = list(
        zip(rng.random(self.needles - self._count), facts[self._count :], strict=True)
      )
      facts, cities, answers = (each[: self._count] for each in (facts, cities, answers))
      ask = partial(_prompt, facts, depth, elsewhere, cities, self.chat)
      own: list[int] = []
      room = length - len(self._encode(tokenizer, ask([])))
      while (following := counts[(start + len(own)) % len(sentences)]) <= room:
        own.append((start + len(own)) % len(sentences))
        room -= following
      while True:
        prompt = self._encode(tokenizer, ask([sentences[i] for i in own]))
        if len(prompt) <= length:
          break
        if not own:
          raise ValueError(
            f"{self.label}: the facts and the question have {len(prompt)} tokens, which is more"
            f" than the length {length}"
          )
        own.pop()
      if len(prompt) < length / 2:
        raise ValueError(
          f"{self.label}: a prompt of length {length} has only {len(prompt)} tokens, since the text"
          f" goes on with {following} that have no space between them"
        )
      yield _Problem(length, depth, prompt, answers)

  def _encode(self, tokenizer: Any, text: str) -> list[int]:
    return prompts.encode(tokenizer, [{"role": "user", "content": text}] if self.chat else text)

  def _result(self, records: list[dict[str, Any]]) -> Result:
    outcomes = {"accuracy": [record["correct"] for record in records]}
    cells = []
    for length, depth in itertools.product(self.lengths, self.depths):
      own = [r["correct"] for r in records if (r["length"], r["depth"]) == (length, depth)]
      outcomes[f"accuracy/{length}/{depth:g}"] = own
      cells.append({"length": length, "depth": depth, "right": sum(own), "problems": len(own)})
    metrics: dict[str, float] = {name: sum(own) / len(own) for name, own in outcomes.items()}
    intervals = {name: bootstrap.wilson(sum(own), len(own)) for name, own in outcomes.items()}
    found = [record["found"] for record in records]
    metrics["found"] = sum(found) / (len(records) * self._count)
    if self._count == 1:
      intervals["found"] = bootstrap.wilson(sum(found), len(found))
    elif len(records) > 1:
      intervals["found"] = bootstrap.interval(found, [self._count] * len(records))
    metrics["problems"] = len(records)
    samples = [
      f"{r['length']} tokens, depth {r['depth']:g}: {', '.join(r['answers'])} was asked for\n"
      f"{r['completion'].strip()}"
      for r in records[: self.shown]
    ]
    means = {"accuracy": ("correct", None), "found": ("found", "asked")}
    return Result(self.label, metrics, records, means, intervals, samples, {"cells": cells})


def _pieces(text: str) -> Iterator[str]:
  """The sentences of a text, long ones (tables, code) in parts of a few words."""
  for sentence in _SENTENCE.split(text):
    words = sentence.split()
    for start in range(0, len(words), _WORDS):
      yield " ".join(words[start : start + _WORDS])


def numbers(text: str) -> list[str]:
  """The whole numbers in a text; commas between groups of three digits are left out."""
  return re.findall(r"[0-9]+", _GROUPED.sub("", text))


def _prompt(
  facts: Sequence[str],
  depth: float,
  elsewhere: Sequence[tuple[float, str]],
  cities: Sequence[str],
  question: bool,
  hay: Sequence[str],
) -> str:
  """The sentences `hay` with facts in them, and what asks for the numbers of `cities`.

  facts: the first at `depth`, the others evenly over what follows.
  elsewhere: further facts, each at a depth of its own.
  """
  first = round(depth * len(hay))
  placed = [(first + i * (len(hay) - first) // len(facts), fact) for i, fact in enumerate(facts)]
  placed += [(round(at * len(hay)), fact) for at, fact in elsewhere]
  parts: list[str] = []
  for i in range(len(hay) + 1):
    parts += [fact for place, fact in placed if place == i]
    parts += hay[i : i + 1]
  listed = " and ".join(filter(None, [", ".join(cities[:-1]), cities[-1]]))
  what, verb = ("numbers", "are") if len(cities) > 1 else ("number", "is")
  asked = f"The special {what} of {listed} {verb}"
  if question:
    asked = f"What {verb} the special {what} of {listed}? Answer with the {what} alone."
  return " ".join(parts) + "\n\n" + asked
