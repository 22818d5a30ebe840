"""Pairs of answers as batches, for evaluators that judge both of a pair.

P pairs of a batch, two rows each, S tokens of a row.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from research.core import distributed
from research.data import packing, preferences, sources
from research.data.examples import BadRow, Example
from research.evals.result import item_id
from research.generation import decode

_BUCKETS = (64, 128, 256, 512)


def read(
  data: Mapping[str, Any], tokenizer: Any, variables: Any, *, length: int, label: str
) -> tuple[list[Example], list[str]]:
  """The pairs of a source, in rows of at most `length` tokens, and their ids.

  Longer answers lose their end, as in training on truncated rows.

  Args:
    variables: whose adapters may need virtual tokens, which count.
    label: of the evaluator, for messages.

  Raises:
    ValueError: a row is no pair, or there are none.
  """
  with distributed.alike(f"what {label} reads") as told:
    source = sources.build(data)
    if source.report:
      logging.warning("%s", source.report)
    lead = len(decode.ahead(variables)[0])
    examples, ids = [], []
    for index in range(len(source)):
      row = source[index]
      try:
        example = preferences.fit(
          preferences.tokenize_pair(row, tokenizer), length - lead, "truncate"
        )
      except BadRow as error:
        where = f"{source.name} row {source.origin(index)}"
        raise ValueError(f"{label}: {where} is {error}") from error
      examples.append(example.led_by(lead))
      ids.append(item_id(index, json.dumps(row, sort_keys=True, default=str)))
    if not examples:
      raise ValueError(f"{label}: {source.name} has no rows")
    told["pairs"] = ids
  return examples, ids


def batches(
  examples: list[Example], batch_size: int, length: int, pad_id: int
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
  """Which pairs a batch has, and the batch (docs/architecture.md); the last one is filled up.

  Pairs of like length share one, the longest first.
  """
  order = sorted(range(len(examples)), key=lambda i: -packing.sides(examples[i])[1])
  buckets = sorted({*(b for b in _BUCKETS if b < length), length})
  for at in range(0, len(order), batch_size):
    chosen = order[at : at + batch_size]
    rows = preferences.rows_of([examples[i] for i in chosen], length)
    rows += [[]] * (preferences.ROWS * batch_size - len(rows))
    width = packing.bucket(packing.sides(examples[chosen[0]])[1], buckets)
    yield chosen, packing.assemble(rows, width, pad_id)
