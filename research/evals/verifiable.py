"""How many problems with a known answer a model solves, by letting it write."""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from research import generation, quant, reasoning
from research.core import config as config_lib
from research.core import distributed, tree
from research.data import prompts, sources
from research.data.examples import BadRow
from research.evals import bootstrap, progress
from research.evals.result import Result, item_id
from research.evals.scorers import SCORERS, Scorer

# What of the records metrics are made of, beside what is correct: shares of problems, and means.
_SHARES = ("unparsable", "unfinished", "any_correct")
_FIGURES = ("length", "tokens_written", "tokens_read", "calls", "agreement")


@dataclasses.dataclass(frozen=True)
class Verifiable:
  """The share of right answers, as a scorer finds them.

  Metrics: `accuracy`, `accuracy/TASK` where there are several tasks, the shares `unparsable`
  (nothing that could be an answer; never right) and `unfinished` (cut off at `max_new_tokens`;
  scored as far as they got), `length`, the mean number of tokens written, EOS included, and the
  count `problems`. Intervals of shares are Wilson's. A record is a problem: its `task`, `answer`,
  `completion` and its `length`, the `value` read in it, and `correct`, `unparsable` and
  `unfinished`, each 0 or 1.

  With a strategy, what is scored is the answer that it comes to, and `length` is that one's. More
  metrics are means over problems: `tokens_written`, `tokens_read` and `calls` (`reasoning.Cost`),
  `any_correct`, whether any answer that was written is right, and of a vote `agreement`. Records
  have these, too, beside the `prompt`, all `samples` and the strategy's `trace`.

  data: the config of a source (`research.data.sources`) whose rows have what the scorer judges by
    (`answer`, and for "reasoning_gym" its columns), maybe `task`, and `prompt` (a text to go on
    with, or messages) or `messages` that end with a user's.
  scorer: a key of `research.evals.scorers.SCORERS`.
  max_new_tokens: of an answer.
  batch_size: completions at a time, samples of a problem counted each.
  sampler: a section, its name in `research.generation.SAMPLERS`; by default greedy.
  seed: of the sampler.
  prompting: a section, its name in `research.reasoning.PROMPTS`: how problems are put.
  strategy: a section, its name in `research.reasoning.STRATEGIES`; empty: one plain answer, without
    the count of what it took.
  cache: a `quant.CacheScheme` as a dict, for keys and values in few bits; empty: as they are.
  shown: how many problems the result's `samples` spell out.
  label: the result's name.
  """

  data: Mapping[str, Any]
  scorer: str = "last_number"
  max_new_tokens: int = 256
  batch_size: int = 32
  sampler: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "greedy"})
  seed: int = 0
  prompting: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "plain"})
  strategy: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  cache: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  shown: int = 3
  label: str = "verifiable"

  def __post_init__(self):
    if self.scorer not in SCORERS:
      raise ValueError(
        f"{self.label}: there is no scorer {self.scorer!r}{tree.nearest(self.scorer, SCORERS)}; "
        f"there are {', '.join(SCORERS)}"
      )
    config_lib.call(reasoning.PROMPTS, self.prompting)
    self._strategy()

  def _strategy(self) -> reasoning.Strategy:
    return reasoning.build(self.strategy or {"name": "plain"}, self._sampler())

  def _sampler(self) -> generation.Sampler:
    return config_lib.call(generation.SAMPLERS, self.sampler)

  def __call__(self, model: Any, variables: Any, tokenizer: Any) -> Result:
    """Generates and scores an answer to every problem.

    Raises:
      ValueError: there are no problems, a row lacks a column or an answer that the scorer can use,
        or the strategy asks for more than the model has (positions, a vocabulary).
    """
    scorer, strategy = SCORERS[self.scorer], self._strategy()
    with distributed.alike(f"what {self.label} reads") as told:
      problems = self._problems(scorer)
      prompting = config_lib.call(reasoning.PROMPTS, self.prompting)
      asks = prompting([problem["prompt"] for problem in problems])
      told["problems"] = [ask.ids(tokenizer) for ask in asks]
    with progress.bar(None if self.strategy else len(asks), self.label, "answer") as bar:
      session = reasoning.Session(
        model,
        variables,
        tokenizer,
        self._sampler(),
        max_new_tokens=self.max_new_tokens,
        batch_size=self.batch_size,
        seed=self.seed,
        cache=quant.CacheScheme(**self.cache) if self.cache else None,
        progress=bar.update,
      )
      outcomes = strategy(session, asks, scorer)
    records = []
    for index, (problem, outcome) in enumerate(zip(problems, outcomes, strict=True)):
      answer = outcome.answer
      verdict = scorer(answer.text, problem)
      record = {
        "id": item_id(index, json.dumps([problem["prompt"], problem["answer"]], sort_keys=True)),
        "task": problem.get("task", ""),
        "answer": problem["answer"],
        "completion": answer.text,
        "length": answer.tokens,
        "value": verdict.value,
        "correct": int(verdict.correct),
        "unparsable": int(verdict.value is None),
        "unfinished": int(not answer.finished),
      }
      records.append(record | (_found(problem, outcome, scorer) if self.strategy else {}))
    return self._result(records, problems)

  def _problems(self, scorer: Scorer) -> list[dict[str, Any]]:
    source = sources.build(self.data)
    if source.report:
      logging.warning("%s", source.report)
    problems = [_problem(source, index, scorer) for index in range(len(source))]
    if not problems:
      raise ValueError(f"{self.label}: {source.name} has no problems")
    return problems

  def _result(
    self, records: Sequence[dict[str, Any]], problems: Sequence[Mapping[str, Any]]
  ) -> Result:
    outcomes: dict[str, list[int]] = collections.defaultdict(list)
    for record in records:
      outcomes["accuracy"].append(record["correct"])
      if record["task"]:
        outcomes[f"accuracy/{record['task']}"].append(record["correct"])
    if len(outcomes) == 2:  # One task: its accuracy is the accuracy.
      outcomes = {"accuracy": outcomes["accuracy"]}
    shares = [name for name in _SHARES if name in records[0]]
    for share in shares:
      outcomes[share] = [record[share] for record in records]
    metrics = {name: sum(counted) / len(counted) for name, counted in outcomes.items()}
    intervals = {
      name: bootstrap.wilson(sum(counted), len(counted)) for name, counted in outcomes.items()
    }
    figures = [name for name in _FIGURES if name in records[0]]
    for name in figures:
      counted = [record[name] for record in records]
      metrics[name] = sum(counted) / len(counted)
      if len(counted) > 1:
        intervals[name] = bootstrap.interval(counted)
    means = {"accuracy": ("correct", None)}
    means |= {name: (name, None) for name in (*shares, *figures)}
    samples = [_shown(problem, record) for problem, record in zip(problems, records, strict=True)][
      : self.shown
    ]
    metrics["problems"] = len(records)
    return Result(self.label, metrics, list(records), means, intervals, samples)


def _problem(source: Any, index: int, scorer: Scorer) -> dict[str, Any]:
  """The row with its `prompt`, a string or messages, and its `answer`, a string or None.

  Raises:
    ValueError: it asks nothing, or lacks what the scorer judges by.
  """
  row = source[index]
  where = f"{source.name}: row {source.origin(index)}"
  try:
    prompt = prompts.prompt_of(row)
  except BadRow as error:
    raise ValueError(f"{where} is {error}") from error
  try:
    scorer.check(row)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error
  answer = row.get("answer")
  return {**row, "prompt": prompt, "answer": None if answer is None else str(answer)}


def _found(
  problem: Mapping[str, Any], outcome: reasoning.Outcome, scorer: Scorer
) -> dict[str, Any]:
  """What a record tells of a strategy: its cost, and all answers, judged."""
  samples: list[dict[str, Any]] = []
  for each in outcome.samples:
    verdict = scorer(each.text, problem)
    samples.append(
      {
        "completion": each.text,
        "length": each.tokens,
        "log_prob": sum(each.log_probs),
        "value": verdict.value,
        "correct": int(verdict.correct),
        "unfinished": int(not each.finished),
      }
    )
  told = {
    "prompt": problem["prompt"],
    "tokens_written": outcome.cost.written,
    "tokens_read": outcome.cost.read,
    "calls": outcome.cost.calls,
    "any_correct": max(sample["correct"] for sample in samples),
    "samples": samples,
    "trace": outcome.trace,
  }
  return told if outcome.agreement is None else told | {"agreement": outcome.agreement}


def _shown(problem: Mapping[str, Any], record: Mapping[str, Any]) -> str:
  """A problem, what was answered and how that was judged, in words."""
  prompt = problem["prompt"]
  asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
  expected = "" if record["answer"] is None else f": {record['answer']} was expected"
  verdict = "right" if record["correct"] else f"wrong{expected}"
  read = "nothing" if record["value"] is None else record["value"]
  cut = " (cut off)" if record["unfinished"] else ""
  return f"> {asked}\n{record['completion'].strip()}{cut}\n[read {read}; {verdict}]"
