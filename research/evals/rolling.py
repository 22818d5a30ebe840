"""Text in windows, each of whose tokens is judged once: what evaluators of plain text share.

B windows of a batch, S tokens of a window.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from research.core import distributed, sharding, tree
from research.data import packing, sources
from research.data.tokenizer import Tokenizer
from research.evals import progress
from research.evals.result import item_id
from research.generation import decode
from research.models import DecoderConfig

_LENGTH = 1024  # of a window, unless told or unless the model has fewer positions
_SHORTEST = 64  # tokens that a batch of short documents is padded to

# `(tokens, targets, segments)`, int32 `[B, S]`, -> `[..., B, S]`, something of each target.
OfTokens = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]


class Window(NamedTuple):
  """Tokens `first` to `stop` of a document are scored; the model is shown `start` to `stop - 1`."""

  start: int
  first: int
  stop: int


class Job(NamedTuple):
  """A window of a document, by its number."""

  document: int
  window: Window


class Documents(NamedTuple):
  """tokens: of each. ids: of each, for records. size: bytes of what can be scored, of all."""

  tokens: list[np.ndarray]
  ids: list[str]
  size: int


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


def jobs_of(documents: Documents, length: int, context: int, label: str) -> list[Job]:
  """All windows of all documents.

  Raises:
    ValueError: there is no token to score.
  """
  jobs = [
    Job(document, window)
    for document, tokens in enumerate(documents.tokens)
    for window in windows(len(tokens), length, context)
  ]
  if not jobs:
    raise ValueError(f"{label}: no token to score in {len(documents.tokens)} documents")
  return jobs


def job_id(documents: Documents, job: Job) -> str:
  """The `id` of a record that is a window."""
  return f"{documents.ids[job.document]}:{job.window.first}"


def length_of(model: Any, variables: Any, length: int | None, label: str) -> int:
  """Tokens that a window shows: `length`, by default 1024 or all the positions there are.

  Raises:
    ValueError: the model is no decoder, or has fewer positions.
  """
  require_decoder(model, label)
  positions = model.config.max_positions - decode.ahead(variables)[1]
  if length is None:
    return min(_LENGTH, positions)
  if length > positions:
    raise ValueError(f"{label}: length {length} is more than the model's {positions} positions")
  return length


def context_of(context: int | None, length: int, label: str) -> int:
  """Tokens before each scored one, at least: `context`, by default half of `length`.

  Raises:
    ValueError: it is longer than the window, or none.
  """
  found = max(1, length // 2) if context is None else context
  if not 1 <= found <= length:
    raise ValueError(f"{label}: context {found} is not within 1 and the length, {length}")
  return found


def require_decoder(model: Any, label: str) -> None:
  """Raises ValueError unless the model is one."""
  if not isinstance(model.config, DecoderConfig):
    raise ValueError(f"{label} is of decoders, not of a {model.config.family}")


def beginning(tokenizer: Tokenizer, bos: bool, label: str) -> list[int]:
  """What a text begins with: with `bos` BOS, or EOS where there is no BOS.

  Raises:
    ValueError: it is asked for, and the tokenizer has neither.
  """
  if not bos:
    return []
  found = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
  begin = [*found, *tokenizer.eos_ids][:1]
  if not begin:
    raise ValueError(f"{label}: the tokenizer has neither BOS nor EOS; set bos=False")
  return begin


def texts(data: Mapping[str, Any]) -> list[str]:
  """The texts of a source's rows.

  Raises:
    ValueError: a row has no `text`.
  """
  source = sources.build(data)
  if source.report:
    logging.warning("%s", source.report)
  found = []
  for index in range(len(source)):
    row = source[index]
    if not isinstance(row.get("text"), str):
      raise ValueError(
        f"{source.name}: row {source.origin(index)} has no 'text'{tree.nearest('text', row)}"
      )
    found.append(row["text"])
  return found


def read(data: Mapping[str, Any], tokenizer: Tokenizer, *, bos: bool, label: str) -> Documents:
  """The documents of a source, the same in all processes.

  Args:
    bos: whether a document begins with BOS, which is not scored, so that all of its tokens are.
    label: of the evaluator, for messages.

  Raises:
    ValueError: a row has no `text`, or there is no BOS.
  """
  with distributed.alike(f"what {label} reads") as told:
    begin = beginning(tokenizer, bos, label)
    tokens, ids, size = [], [], 0
    for index, text in enumerate(texts(data)):
      own = tokenizer.encode(text, add_special=False)
      size += len(text.encode())
      if not bos:
        size -= len(tokenizer.decode(own[:1]).encode())
      tokens.append(np.asarray(begin + own, np.int32))
      ids.append(item_id(index, text))
    told["documents"] = ids
  return Documents(tokens, ids, size)


def each(
  of_tokens: OfTokens,
  documents: Sequence[np.ndarray],
  jobs: Sequence[Job],
  *,
  batch_size: int,
  length: int,
  lead: Sequence[int],
  label: str,
) -> Iterator[tuple[int, np.ndarray]]:
  """What `of_tokens` tells of the scored tokens of each window.

  Args:
    of_tokens: is given whole batches, of few widths.
    documents: their tokens.
    length: that no window shows more than.
    lead: tokens that every window begins with: an adapter's virtual ones.

  Yields:
    A job's place in `jobs`, which come in another order, and `[..., scored]`.
  """
  lengths = [window.stop - window.start - 1 for _, window in jobs]
  # Like lengths share a batch, the longest first, so that few tokens are padding.
  order = sorted(range(len(jobs)), key=lambda i: -lengths[i])
  buckets = [length]
  while buckets[0] > _SHORTEST:
    buckets.insert(0, max(_SHORTEST, buckets[0] // 2))
  with progress.bar(sum(lengths), label, "token") as bar:
    for at in range(0, len(jobs), batch_size):
      chosen = order[at : at + batch_size]
      shape = (batch_size, len(lead) + packing.bucket(lengths[chosen[0]], buckets))
      tokens, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
      for row, i in enumerate(chosen):
        document, window = documents[jobs[i].document], jobs[i].window
        own = slice(len(lead), len(lead) + lengths[i])
        tokens[row, : own.start] = lead
        tokens[row, own] = document[window.start : window.stop - 1]
        targets[row, own] = document[window.start + 1 : window.stop]
        segments[row, : own.stop] = 1
      found = sharding.fetched(of_tokens(tokens, targets, segments))
      for row, i in enumerate(chosen):
        window = jobs[i].window
        first = len(lead) + window.first - window.start - 1
        yield i, found[..., row, first : len(lead) + lengths[i]]
      bar.update(sum(lengths[i] for i in chosen))
