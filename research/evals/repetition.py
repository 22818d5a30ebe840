"""How much of what a model writes it has written before."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from research import generation
from research.core import config as config_lib
from research.core import distributed
from research.data import prompts, sources
from research.data.examples import BadRow
from research.evals import bootstrap, progress
from research.evals.result import Result, item_id

_GRAM = 4  # of seq-rep-4
_TIMES = 3  # that the end of a text comes, in a loop
_SHORTEST = 16  # tokens of a loop, all times together


@dataclasses.dataclass(frozen=True)
class Repetition:
  """Repeated n-grams of tokens in what a model writes after prompts; EOS is none of them.

  Metrics: `distinct_1`, `distinct_2`, `distinct_3`, different n-grams of all completions by all
  (Li et al. 2016, arXiv:1510.03055; they fall with the number of tokens, so that only equal numbers
  compare, and have no interval); `seq_rep_4`, the mean over completions of the share of 4-grams
  that came before in the same one (Welleck et al. 2019, arXiv:1908.04319, section 6), where there
  are any; `looping`, the share of completions that end in a loop: their last tokens, 16 or more,
  are one piece three times over; `unfinished`; `length`, the mean number of tokens; and
  `completions`. Intervals of shares are Wilson's. A record is a completion.

  data: the config of a source (`research.data.sources`) whose rows have `prompt` (a text to go on
    with, or messages) or `messages`.
  max_new_tokens: of a completion.
  batch_size: completions at a time.
  sampler: a section, its name in `research.generation.SAMPLERS`; by default greedy.
  seed: of the sampler.
  shown: how many loops the result's `samples` spell out.
  label: the result's name.
  """

  data: Mapping[str, Any]
  max_new_tokens: int = 128
  batch_size: int = 32
  sampler: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "greedy"})
  seed: int = 0
  shown: int = 3
  label: str = "repetition"

  def __post_init__(self):
    config_lib.call(generation.SAMPLERS, self.sampler)

  def __call__(self, model: Any, variables: Any, tokenizer: Any) -> Result:
    """Writes after all prompts.

    Raises:
      ValueError: there are no prompts, or a row has none.
    """
    with distributed.alike(f"what {self.label} reads") as told:
      asked = self._prompts()
      ids = [prompts.encode(tokenizer, prompt) for prompt in asked]
      told["prompts"] = ids
    with progress.bar(len(ids), self.label, "prompt") as bar:
      completions = generation.generate(
        model,
        variables,
        ids,
        config_lib.call(generation.SAMPLERS, self.sampler),
        max_new_tokens=self.max_new_tokens,
        eos_ids=tokenizer.eos_ids,
        batch_size=self.batch_size,
        seed=self.seed,
        progress=bar.update,
      )
    written: list[Sequence[int]] = []
    records: list[dict[str, Any]] = []
    samples: list[str] = []
    for index, (prompt, completion) in enumerate(zip(asked, completions, strict=True)):
      tokens = completion.tokens[:-1] if completion.finished else completion.tokens
      written.append(tokens)
      grams = ngrams(tokens, _GRAM)
      period = loop(tokens)
      text = tokenizer.decode(tokens)
      record = {
        "id": item_id(index, json.dumps(prompt)),
        "completion": text,
        "length": len(tokens),
        "looping": int(period is not None),
        "unfinished": int(not completion.finished),
      }
      if grams:
        record["seq_rep_4"] = 1 - len({*grams}) / len(grams)
      records.append(record)
      if period is not None and len(samples) < self.shown:
        samples.append(f"{text.strip()}\n[ends in a loop of {period} tokens]")
    return self._result(records, written, samples)

  def _prompts(self) -> list[Any]:
    source = sources.build(self.data)
    if source.report:
      logging.warning("%s", source.report)
    found = []
    for index in range(len(source)):
      try:
        found.append(prompts.prompt_of(source[index]))
      except BadRow as error:
        raise ValueError(f"{source.name}: row {source.origin(index)} is {error}") from error
    if not found:
      raise ValueError(f"{self.label}: {source.name} has no prompts")
    return found

  def _result(
    self, records: list[dict[str, Any]], written: Sequence[Sequence[int]], samples: list[str]
  ) -> Result:
    metrics: dict[str, float] = {}
    intervals = {}
    for n in (1, 2, 3):
      grams = [gram for tokens in written for gram in ngrams(tokens, n)]
      if grams:
        metrics[f"distinct_{n}"] = len({*grams}) / len(grams)
    for name in ("seq_rep_4", "length"):
      values = [record[name] for record in records if name in record]
      if values:
        metrics[name] = sum(values) / len(values)
      if len(values) > 1:
        intervals[name] = bootstrap.interval(values)
    for name in ("looping", "unfinished"):
      count = sum(record[name] for record in records)
      metrics[name] = count / len(records)
      intervals[name] = bootstrap.wilson(count, len(records))
    means: dict[str, tuple[str, str | None]] = {
      name: (name, None)
      for name in ("seq_rep_4", "length", "looping", "unfinished")
      if name in metrics
    }
    metrics["completions"] = len(records)
    return Result(self.label, metrics, records, means, intervals, samples)


def ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
  """All runs of `n` neighbouring tokens, in order."""
  return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def loop(tokens: Sequence[int]) -> int | None:
  """The tokens of the shortest piece that the end repeats over and over, None if there is none.

  The end is the last three pieces, and at least 16 tokens.
  """
  for period in range(1, len(tokens) // _TIMES + 1):
    tail = max(_TIMES * period, _SHORTEST)
    if tail <= len(tokens) and tokens[-tail:-period] == tokens[period - tail :]:
      return period
  return None
