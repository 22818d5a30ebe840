"""What a model writes after prompts beside what it should have written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from research import generation
from research.core import distributed, tree
from research.data import chat, sources
from research.evals import bootstrap, progress
from research.evals.result import Result, item_id


class Pair(NamedTuple):
  """id: of a record. text: what was written; finished: not cut off."""

  id: str
  prompt: str
  reference: str
  text: str
  finished: bool

  def shown(self) -> str:
    """The pair in words."""
    return f"> {self.prompt}\n{self.text}\n[reference: {self.reference}]"


@dataclasses.dataclass(frozen=True)
class Pairs:
  """What evaluators of texts beside their references have in common.

  data: the config of a source (`research.data.sources`) whose rows have `prompt` and `completion`.
  max_new_tokens: of a completion.
  num_beams: beams that are searched; 1 takes the most probable token.
  batch_size: pairs, or beams, at a time.
  shown: how many pairs the result's `samples` spell out.
  label: the result's name.
  """

  data: Mapping[str, Any]
  max_new_tokens: int = 128
  num_beams: int = 1
  batch_size: int = 32
  shown: int = 3
  label: str = ""

  def write(self, model: Any, variables: Any, tokenizer: Any) -> list[Pair]:
    """A completion of each row's prompt, beside its reference.

    Raises:
      ValueError: a row lacks a column, or there are none.
    """
    with distributed.alike(f"what {self.label} reads") as told:
      rows = _rows(sources.build(self.data))
      told["pairs"] = [[row["prompt"], row["completion"]] for row in rows]
    prompts = [chat.encode_text(tokenizer, row["prompt"]) for row in rows]
    with progress.bar(len(rows), self.label, "pair") as bar:
      # One beam needs none of the copies that a search makes.
      search: Callable[..., Any] = generation.generate
      if self.num_beams > 1:
        search = partial(generation.beam_search, num_beams=self.num_beams)
      written = search(
        model,
        variables,
        prompts,
        max_new_tokens=self.max_new_tokens,
        eos_ids=tokenizer.eos_ids,
        batch_size=self.batch_size,
        progress=bar.update,
      )
    return [
      Pair(
        item_id(index, json.dumps([row["prompt"], row["completion"]])),
        row["prompt"],
        row["completion"],
        tokenizer.decode(completion.tokens),
        completion.finished,
      )
      for index, (row, completion) in enumerate(zip(rows, written, strict=True))
    ]

  def means(self, written: Sequence[Pair], figures: Sequence[Mapping[str, float]]) -> Result:
    """A result of `figures` of each pair: their means, and `unfinished` and `pairs`."""
    records: list[dict[str, Any]] = [
      {
        "id": pair.id,
        "completion": pair.text,
        "reference": pair.reference,
        **own,
        "unfinished": int(not pair.finished),
      }
      for pair, own in zip(written, figures, strict=True)
    ]
    metrics, intervals = {}, {}
    for name in (*figures[0], "unfinished"):
      values = [record[name] for record in records]
      metrics[name] = sum(values) / len(values)
      if len(values) > 1:
        intervals[name] = bootstrap.interval(values)
    count = sum(record["unfinished"] for record in records)
    intervals["unfinished"] = bootstrap.wilson(count, len(records))
    means = {name: (name, None) for name in metrics}
    metrics["pairs"] = len(records)
    samples = [pair.shown() for pair in written[: self.shown]]
    return Result(self.label, metrics, records, means, intervals, samples)


def _rows(source: Any) -> list[dict[str, str]]:
  rows = [source[index] for index in range(len(source))]
  for index, row in enumerate(rows):
    for name in ("prompt", "completion"):
      if not isinstance(row.get(name), str):
        raise ValueError(
          f"{source.name}: row {source.origin(index)} has no text {name!r}{tree.nearest(name, row)}"
        )
  if not rows:
    raise ValueError(f"{source.name} has no rows")
  return rows
