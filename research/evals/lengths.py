"""Whether a model makes use of longer rows, and how far it goes.

B windows of a batch, S tokens of a window.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from research.evals import bootstrap, rolling
from research.evals.perplexity import token_losses
from research.evals.result import Result
from research.generation import checks, decode


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Perplexity of the same tokens after rows of several lengths.

  Documents are cut in pieces of the largest length. The last tokens of a piece are scored after as
  many tokens as each length shows, so that nothing but what the model sees differs (Press et al.
  2021, arXiv:2108.12409, figure 1, with a context for every token).

  Metrics: `nll/LENGTH` (nats a token), `perplexity/LENGTH`, and `nll_change/LENGTH`, by how much
  the nats differ from those of the smallest length (less than 0: more text helps), paired by
  piece; `pieces`, and `tokens`, the number that are scored. A record is a piece. The table
  `lengths` has a row a length, with `beyond` 1 where it is more than the positions that the model
  was made for, which `samples` say, too; `positions` the nats by how many tokens (`from` to less
  than `to`) come before, within the largest length.

  data: the config of a source whose rows have `text` (`research.data.sources`); documents shorter
    than a piece are left out.
  lengths: tokens that rows show, BOS included.
  last: tokens of a piece that are scored.
  batch_size: rows at a time.
  bos: rows begin with BOS (EOS where the tokenizer has no BOS), also in the middle of a text.
  label: the result's name.
  """

  data: Mapping[str, Any]
  lengths: Sequence[int] = (128, 256, 512, 1024)
  last: int = 64
  batch_size: int = 4
  bos: bool = True
  label: str = "lengths"

  def __post_init__(self):
    if len(self.lengths) < 2 or sorted({*self.lengths}) != list(self.lengths):
      raise ValueError(
        f"{self.label}: lengths are two or more, each larger than the one before, not"
        f" {list(self.lengths)}"
      )
    if not 1 <= self.last <= self.lengths[0] - self.bos:
      raise ValueError(
        f"{self.label}: last is {self.last}; of rows of {self.lengths[0]} tokens 1 to"
        f" {self.lengths[0] - self.bos} can be scored"
      )

  def __call__(self, model: Any, variables: Any, tokenizer: Any) -> Result:
    """Scores all pieces after rows of each length.

    Raises:
      ValueError: the model is no decoder that writes, or its table of positions ends before the
        largest length; a row has no `text`; or no document has as many tokens.
    """
    rolling.require_decoder(model, self.label)
    checks.writes(model, self.label)
    lead, before = decode.ahead(variables)
    positions = model.config.max_positions - before
    beyond = [length for length in self.lengths if length > positions]
    if beyond and model.config.rope is None and model.config.positions == "learned":
      raise ValueError(
        f"{self.label}: length {beyond[0]} is more than the {positions} positions of the model's"
        " table"
      )
    documents = rolling.read(self.data, tokenizer, bos=False, label=self.label)
    begin = rolling.beginning(tokenizer, self.bos, self.label)
    largest = self.lengths[-1] - len(begin)
    pieces = [
      (document, stop)
      for document, tokens in enumerate(documents.tokens)
      for stop in range(largest + 1, len(tokens) + 1, largest)
    ]
    if not pieces:
      longest = max(map(len, documents.tokens), default=0)
      raise ValueError(
        f"{self.label}: a piece of length {self.lengths[-1]} takes documents of {largest + 1}"
        f" tokens; the longest has {longest}"
      )
    losses = {}  # by length: [pieces, tokens of the row that can be scored]
    for length in self.lengths:
      shown = length - len(begin)
      scored = shown if length == self.lengths[-1] else self.last
      found = np.zeros((len(pieces), scored))
      for i, told in rolling.each(
        partial(token_losses, model, variables),
        documents.tokens,
        [
          rolling.Job(document, rolling.Window(stop - 1 - shown, stop - scored, stop))
          for document, stop in pieces
        ],
        batch_size=self.batch_size,
        length=shown,
        lead=[*lead, *begin],
        label=f"{self.label} {length}",
      ):
        found[i] = told
      losses[length] = found
    ids = [f"{documents.ids[document]}:{stop}" for document, stop in pieces]
    result = self._result(ids, {length: found[:, -self.last :] for length, found in losses.items()})
    for row in result.tables["lengths"]:
      row["beyond"] = int(row["length"] in beyond)
    if beyond:
      result.samples.append(
        f"lengths {', '.join(map(str, beyond))}: beyond the {positions} positions that the model"
        " was made for"
      )
    result.tables["positions"] = _by_position(losses[self.lengths[-1]], len(begin) + 1)
    return result

  def _result(self, ids: Sequence[str], losses: Mapping[int, np.ndarray]) -> Result:
    records: list[dict[str, Any]] = [{"id": name, "tokens": self.last} for name in ids]
    metrics: dict[str, float] = {}
    intervals, means, rows = {}, {}, []
    smallest = losses[self.lengths[0]].sum(axis=1)
    for length, found in losses.items():
      sums = found.sum(axis=1)
      figures = {f"nll/{length}": sums, f"nll_change/{length}": sums - smallest}
      if length == self.lengths[0]:
        del figures[f"nll_change/{length}"]
      for name, values in figures.items():
        metrics[name] = float(values.sum()) / found.size
        means[name] = (name, "tokens")
        for record, value in zip(records, values, strict=True):
          record[name] = float(value)
        if len(ids) > 1:
          intervals[name] = bootstrap.interval(values.tolist(), [self.last] * len(ids))
      nll = metrics[f"nll/{length}"]
      metrics[f"perplexity/{length}"] = math.exp(nll)
      row: dict[str, Any] = {"length": length, "perplexity": math.exp(nll)}
      if len(ids) > 1:
        low, high = (math.exp(end) for end in intervals[f"nll/{length}"])
        intervals[f"perplexity/{length}"] = (low, high)
        row |= {"low": low, "high": high}
      rows.append(row)
    metrics |= {"pieces": len(ids), "tokens": len(ids) * self.last}
    return Result(self.label, metrics, records, means, intervals, tables={"lengths": rows})


def _by_position(losses: np.ndarray, first: int) -> list[dict[str, Any]]:
  """Nats by how many tokens come before, in ranges that double.

  Args:
    losses: `[pieces, tokens]` of rows whose first scored token comes after `first` tokens.
  """
  ends = first + losses.shape[1]
  rows = []
  low = first
  while low < ends:
    high = min(ends, 2 ** low.bit_length())
    own = losses[:, low - first : high - first]
    rows.append({"from": low, "to": high, "nll": float(own.mean()), "tokens": own.size})
    low = high
  return rows
