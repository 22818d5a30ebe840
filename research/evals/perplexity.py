"""How well a model predicts text, every token of it once.

B windows of a batch, S tokens of a window, D model, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from research.core import distributed, sharding, tree
from research.data import packing, sources
from research.evals import bootstrap, few_bits, progress
from research.evals.result import Result, item_id
from research.generation import decode
from research.losses import cross_entropy
from research.models import DecoderConfig
from research.quant import CacheScheme

_LENGTH = 1024  # of a window, unless told or unless the model has fewer positions
_SHORTEST = 64  # tokens that a batch of short documents is padded to


class Window(NamedTuple):
  """Tokens `first` to `stop` of a document are scored; the model is shown `start` to `stop - 1`."""

  start: int
  first: int
  stop: int


def windows(tokens: int, length: int, context: int) -> Iterator[Window]:
  """Windows that score each of the tokens 1 … `tokens - 1` of a document exactly once.

  A scored token has at least `context` tokens before it in its window, or all there are, and a
  window shows at most `length`. Windows advance by `length - context + 1` tokens; the last one
  reaches back as far as it can. `context` equal to `length` gives every token the full length,
  at the price of a window a token.
  """
  first = 1
  while first < tokens:
    stop = min(tokens, max(0, first - context) + length + 1)
    yield Window(max(0, stop - 1 - length), first, stop)
    first = stop


@dataclasses.dataclass(frozen=True)
class Perplexity:
  """Negative log-likelihood of documents, in rolling windows.

  Metrics: `nll_per_token` (nats), `perplexity` (its exponential), `bits_per_byte` (of UTF-8;
  comparable across tokenizers), and the counts `tokens` (scored), `bytes`, `documents`. A record
  is a window: its `nll` and `tokens`.

  data: the config of a source whose rows have `text` (`research.data.sources`).
  length: tokens that a window shows; by default 1024, or all the positions of a smaller model.
  context: tokens before each scored token, at least, where there are as many; by default half of
    the length.
  batch_size: windows at a time.
  bos: a document begins with BOS (EOS where the tokenizer has no BOS), which is not scored, so
    that all of its tokens are. Without it the first token is shown and not scored.
  cache: a `quant.CacheScheme` as a dict: tokens see the ones before them as through a cache in few
    bits; empty: as they are.
  label: the result's name.
  """

  data: Mapping[str, Any]
  length: int | None = None
  context: int | None = None
  batch_size: int = 4
  bos: bool = True
  cache: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  label: str = "perplexity"

  def __call__(self, model: Any, variables: Any, tokenizer: Any) -> Result:
    """Scores all documents.

    Raises:
      ValueError: the model is no decoder; a window is longer than the model's positions, or the
        context is longer than it; a row has no `text`, or there is no token to score.
    """
    if not isinstance(model.config, DecoderConfig):
      raise ValueError(f"{self.label} is of decoders, not of a {model.config.family}")
    lead, before = decode.ahead(variables)
    positions = model.config.max_positions - before
    length = min(_LENGTH, positions) if self.length is None else self.length
    context = max(1, length // 2) if self.context is None else self.context
    if length > positions:
      raise ValueError(
        f"{self.label}: length {length} is more than the model's {positions} positions"
      )
    if not 1 <= context <= length:
      raise ValueError(f"{self.label}: context {context} is not within 1 and the length, {length}")
    with distributed.alike(f"what {self.label} reads") as told:
      documents, ids, size = self._documents(tokenizer)
      told["documents"] = ids
    jobs = [
      (document, window)
      for document, tokens in enumerate(documents)
      for window in windows(len(tokens), length, context)
    ]
    if not jobs:
      raise ValueError(f"{self.label}: no token to score in {len(documents)} documents")
    if self.cache:
      variables = few_bits.remembering(CacheScheme(**self.cache), variables, model.config)
    sums = self._score(model, variables, documents, jobs, length, lead)
    records = [
      {"id": f"{ids[d]}:{w.first}", "nll": nll, "tokens": w.stop - w.first}
      for (d, w), nll in zip(jobs, sums, strict=True)
    ]
    return self._result(records, size, len(documents))

  def _documents(self, tokenizer: Any) -> tuple[list[np.ndarray], list[str], int]:
    """Tokens and id of each document, and the bytes of what is scored of them."""
    source = sources.build(self.data)
    if source.report:
      logging.warning("%s", source.report)
    begin: list[int] = []
    if self.bos:
      bos = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
      begin = [*bos, *tokenizer.eos_ids][:1]
      if not begin:
        raise ValueError(f"{self.label}: the tokenizer has neither BOS nor EOS; set bos=False")
    documents, ids, size = [], [], 0
    for index in range(len(source)):
      row = source[index]
      if not isinstance(row.get("text"), str):
        raise ValueError(
          f"{source.name}: row {source.origin(index)} has no 'text'{tree.nearest('text', row)}"
        )
      tokens = tokenizer.encode(row["text"], add_special=False)
      size += len(row["text"].encode())
      if not self.bos:
        size -= len(tokenizer.decode(tokens[:1]).encode())
      documents.append(np.asarray(begin + tokens, np.int32))
      ids.append(item_id(index, row["text"]))
    return documents, ids, size

  def _score(
    self,
    model: Any,
    variables: Any,
    documents: Sequence[np.ndarray],
    jobs: Sequence[tuple[int, Window]],
    longest: int,
    lead: list[int],
  ) -> list[float]:
    """The nats of each window's scored tokens, after the virtual tokens `lead`."""
    sums = [0.0] * len(jobs)
    lengths = [window.stop - window.start - 1 for _, window in jobs]
    # Like lengths share a batch, the longest first, so that few tokens are padding.
    order = sorted(range(len(jobs)), key=lambda i: -lengths[i])
    buckets = [longest]
    while buckets[0] > _SHORTEST:
      buckets.insert(0, max(_SHORTEST, buckets[0] // 2))
    with progress.bar(sum(lengths), self.label, "token") as bar:
      for at in range(0, len(jobs), self.batch_size):
        chosen = order[at : at + self.batch_size]
        width = len(lead) + packing.bucket(lengths[chosen[0]], buckets)
        shape = (self.batch_size, width)
        tokens, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
        for row, i in enumerate(chosen):
          document, window = documents[jobs[i][0]], jobs[i][1]
          own = slice(len(lead), len(lead) + lengths[i])
          tokens[row, : own.start] = lead
          tokens[row, own] = document[window.start : window.stop - 1]
          targets[row, own] = document[window.start + 1 : window.stop]
          segments[row, : own.stop] = 1
        losses = sharding.fetched(_token_losses(model, variables, tokens, targets, segments))
        for row, i in enumerate(chosen):
          window = jobs[i][1]
          first = len(lead) + window.first - window.start - 1
          sums[i] = float(losses[row, first : len(lead) + lengths[i]].sum(dtype=np.float64))
        bar.update(sum(lengths[i] for i in chosen))
    return sums

  def _result(self, records: list[dict[str, Any]], size: int, documents: int) -> Result:
    nats = [record["nll"] for record in records]
    counts = [record["tokens"] for record in records]
    total, tokens = math.fsum(nats), sum(counts)
    metrics = {
      "nll_per_token": total / tokens,
      "perplexity": math.exp(total / tokens),
      "bits_per_byte": total / math.log(2) / size,
      "tokens": tokens,
      "bytes": size,
      "documents": documents,
    }
    intervals = {}
    if len(records) > 1:
      low, high = bootstrap.interval(nats, counts)
      intervals["nll_per_token"] = (low, high)
      intervals["perplexity"] = (math.exp(low), math.exp(high))
    means = {"nll_per_token": ("nll", "tokens")}
    return Result(self.label, metrics, records, means, intervals)


@partial(jax.jit, static_argnums=0)
def _token_losses(model, variables, tokens, targets, segments):
  """Nats of `targets [B, S]` after `tokens [B, S]` -> float32 `[B, S]`."""
  hidden = model.apply(variables, tokens, segments=segments, method="hidden")  # [B, S, D]

  def head(variables, hidden):
    return model.apply(variables, hidden, method="head")

  return cross_entropy.of_tokens(head, variables, hidden, targets)
