"""What a model writes after prompts beside what it should have written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from research import generation
from research.core import distributed, tree
from research.data import chat, sources
from research.evals import progress
from research.evals.result import item_id


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


def write(
  model: Any,
  variables: Any,
  tokenizer: Any,
  data: Mapping[str, Any],
  *,
  max_new_tokens: int,
  num_beams: int,
  batch_size: int,
  label: str,
) -> list[Pair]:
  """A completion of each row's prompt, beside its reference.

  Args:
    data: the config of a source whose rows have `prompt` and `completion`.
    num_beams: beams that are searched; 1 takes the most probable token.
    label: of the evaluator, for messages.

  Raises:
    ValueError: a row lacks a column, or there are none.
  """
  with distributed.alike(f"what {label} reads") as told:
    rows = _rows(sources.build(data))
    told["pairs"] = [[row["prompt"], row["completion"]] for row in rows]
  prompts = [chat.encode_text(tokenizer, row["prompt"]) for row in rows]
  with progress.bar(len(rows), label, "pair") as bar:
    # One beam needs none of the copies that a search makes.
    search: Callable[..., Any] = generation.generate
    if num_beams > 1:
      search = partial(generation.beam_search, num_beams=num_beams)
    written = search(
      model,
      variables,
      prompts,
      max_new_tokens=max_new_tokens,
      eos_ids=tokenizer.eos_ids,
      batch_size=batch_size,
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
