"""Documents of text as problems for a decoder: one document, of which the end is learnt.

What is left of a text, whole up to some place or without some spans, is the problem and comes
first; the rest is its solution.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from research.data import corruption
from research.data.examples import BadRow, Example

if TYPE_CHECKING:
  from research.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class _Prefix:
  """See `prefix`."""

  words: ClassVar[bool] = False
  split: str
  rate: float | None
  mode: tuple[int, ...]
  bos_id: int | None
  bidirectional: bool

  def raw_length(self, length: int, target_length: int | None = None) -> int:
    # Each side of a pair has a token less than the document at most, and one more, EOS or start.
    most = length - len(self.mode)
    return most if target_length is None else min(most, target_length)

  def check(self, example: Example) -> None:
    if self.split == "random":
      _check_learnt(example, 2)
    elif example.weights_mask.all():
      raise BadRow("without a prompt", "the corruption's split is 'prompt'; 'random' needs none")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    if self.split == "random":
      cut = corruption.prefix_length(len(example), rng, rate=self.rate)
    else:
      cut = 1 + int(np.argmax(example.weights_mask[1:]))
    learnt = example.weights_mask & (np.arange(len(example)) >= cut)
    at = int(example.tokens[0] == self.bos_id)
    cut += len(self.mode)
    return dataclasses.replace(
      example,
      tokens=np.insert(example.tokens, [at] * len(self.mode), self.mode).astype(np.int32),
      weights_mask=np.insert(learnt, [at] * len(self.mode), False),
      prefix=cut if self.bidirectional else 0,
    )


def prefix(
  tokenizer: Tokenizer,
  *,
  split: str = "random",
  rate: float | None = None,
  mode: str = "",
  bidirectional: bool = True,
) -> _Prefix:
  """Prefix language modelling (Raffel et al. 2020; Tay et al. 2022): what follows is learnt.

  Args:
    split: `random`, as `corruption.prefix_length`, or `prompt`: what comes before the first
      token of the completion or of the assistant.
    rate: the mean share of the tokens that are learnt; by default any split is as likely.
    mode: a token that begins the document, after BOS.
    bidirectional: tokens of the prefix see each other both ways.
  """
  if split not in ("random", "prompt"):
    raise ValueError(f"corruption.split {split!r} is neither 'random' nor 'prompt'")
  if rate is not None and (split == "prompt" or not 0 < rate <= 0.5):
    raise ValueError(f"corruption.rate {rate} of split {split!r}: a random split's, at most 0.5")
  return _Prefix(split, rate, _ids(tokenizer, mode), tokenizer.bos_id, bidirectional)


@dataclasses.dataclass(frozen=True)
class _Spans:
  """See `spans`."""

  words: ClassVar[bool] = False
  rate: float
  mean_span: float
  sentinels: np.ndarray
  mode: tuple[int, ...]
  separator: tuple[int, ...]
  bos_id: int | None
  eos_ids: tuple[int, ...]
  bidirectional: bool

  def raw_length(self, length: int, target_length: int | None = None) -> int:
    frame = len(self.mode) + len(self.separator) + (self.bos_id is not None) + 1
    for tokens in range(length + (target_length or 0), 1, -1):
      noise, spans = corruption.span_counts(tokens, self.rate, self.mean_span)
      if target_length is None:
        fits = tokens + 2 * spans + frame <= length
      else:
        fits = tokens - noise + spans + frame <= length and noise + spans + 2 <= target_length
      if fits:
        if spans > len(self.sentinels):
          raise ValueError(
            f"rows of {length} tokens have up to {spans} spans, and there are "
            f"{len(self.sentinels)} sentinels"
          )
        return tokens
    raise ValueError(f"no document with a span fits rows of {length} tokens")

  def check(self, example: Example) -> None:
    begin, end = self._body(example)
    _check_learnt(example, 2 + len(example) - (end - begin))

  def _body(self, example: Example) -> tuple[int, int]:
    """Where BOS is over and EOS begins."""
    begin = int(example.tokens[0] == self.bos_id)
    return begin, len(example) - int(example.tokens[-1] in self.eos_ids)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    begin, end = self._body(example)
    body = example.tokens[begin:end]
    noise = corruption.noise_spans(len(body), rng, rate=self.rate, mean_span=self.mean_span)
    inputs, targets = corruption.drop_spans(body, noise, self.sentinels)
    asked = np.concatenate([example.tokens[:begin], self.mode, inputs, self.separator])
    tokens = np.concatenate([asked, targets, self.eos_ids[:1]]).astype(np.int32)
    return dataclasses.replace(
      example,
      tokens=tokens,
      weights_mask=np.arange(len(tokens)) >= len(asked),
      prefix=len(asked) if self.bidirectional else 0,
    )


def spans(
  tokenizer: Tokenizer,
  *,
  rate: float = 0.15,
  mean_span: float = 3.0,
  sentinels: int = 0,
  separator: str = "",
  mode: str = "",
  bidirectional: bool = True,
) -> _Spans:
  """Span corruption in one document: inputs, separator, targets, EOS; the targets are learnt.

  Args:
    rate, mean_span: see `corruption.noise_spans`.
    sentinels: so many of the vocabulary's last tokens; 0 is those named `<extra_id_0>`, ...
    separator: a token between inputs and targets; the first sentinel again says as much.
    mode: a token that begins the document, after BOS.
    bidirectional: tokens of the inputs see each other both ways.
  """
  corruption.span_counts(2, rate, mean_span)
  return _Spans(
    rate,
    mean_span,
    corruption.sentinel_ids(tokenizer, sentinels),
    _ids(tokenizer, mode),
    _ids(tokenizer, separator),
    tokenizer.bos_id,
    tokenizer.eos_ids,
    bidirectional,
  )


def _check_learnt(example: Example, least: int) -> None:
  if not example.weights_mask[1:].all():
    raise BadRow("with a prompt", "only documents that are learnt whole can be corrupted")
  if len(example) < least:
    raise BadRow("too short to corrupt", f"it has {len(example)} tokens of at least {least}")


def _ids(tokenizer: Tokenizer, token: str) -> tuple[int, ...]:
  return (tokenizer.token_id(token),) if token else ()
